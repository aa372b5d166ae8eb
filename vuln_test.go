package deputy_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestVulnerabilityCheck runs tools/vuln with commands that end as govulncheck does. Only an unreachable database is a
// warning; a finding and every other error fail.
func TestVulnerabilityCheck(t *testing.T) {
	for name, test := range map[string]struct {
		command string
		fails   bool
		warns   bool
	}{
		"nothing found":    {"echo No vulnerabilities found.", false, false},
		"found":            {"echo 'Vulnerability #1: GO-2026-0001'; exit 3", true, false},
		"found, in doubt":  {"echo 'govulncheck: fetching vulnerabilities: a name in a finding'; exit 3", true, false},
		"no database":      {`echo 'govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": no such host' >&2; exit 1`, false, true},
		"does not compile": {"echo 'govulncheck: loading packages: there are errors' >&2; exit 1", true, false},
		"no such tool":     {"exit 127", true, false},
	} {
		check := exec.Command("tools/vuln", "sh", "-c", test.command)
		check.Env = append(os.Environ(), "DIRS=. client")
		out, err := check.CombinedOutput()
		if (err != nil) != test.fails {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if warned := strings.Count(string(out), "WARNING: https://vuln.go.dev cannot be reached") == 2; warned != test.warns {
			t.Errorf("%s: warned %v\n%s", name, warned, out)
		}
	}
}
