package deputy_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

const threatModel = "docs/threat-model.md"

var namedTest = regexp.MustCompile("`([a-zA-Z0-9_/.-]+_test\\.go):((?:Test|Fuzz)[A-Za-z0-9_]+)`")

// threatFaults reads the rows of the tables that end in a column of tests. It returns named tests that do not exist,
// rows without a test, rows that occur twice, and invariants that are not listed.
func threatFaults(text string, source func(path string) (string, error)) (faults []string, tests int) {
	invariants, rows := make(map[string]bool), make(map[string]bool)
	inTable := false
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(strings.ToLower(line), "not yet") {
			faults = append(faults, "a threat that nothing holds yet: "+line)
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		last := strings.TrimSpace(cells[len(cells)-1])
		switch {
		case !strings.HasPrefix(line, "|"):
			inTable = false
			continue
		case last == "test":
			inTable = true
			continue
		case !inTable || strings.HasPrefix(line, "|---"):
			continue
		}
		if rows[cells[0]] {
			faults = append(faults, "twice: "+line)
		}
		rows[cells[0]] = true
		named := namedTest.FindAllStringSubmatch(last, -1)
		if len(named) == 0 {
			faults = append(faults, "no test: "+line)
		}
		for _, n := range named {
			tests++
			if code, err := source(n[1]); err != nil || !strings.Contains(code, "\nfunc "+n[2]+"(") {
				faults = append(faults, fmt.Sprintf("%s has no %s", n[1], n[2]))
			}
		}
		if first := strings.Fields(cells[0]); len(named) > 0 && len(first) > 0 {
			invariants[first[0]] = true
		}
	}
	for i := 1; i <= 15; i++ {
		if name := fmt.Sprint("I", i); !invariants[name] {
			faults = append(faults, "invariant "+name+" has no row with a test")
		}
	}
	return faults, tests
}

func readSource(path string) (string, error) {
	code, err := os.ReadFile(path)
	return string(code), err
}

func TestThreatModelNamesRealTests(t *testing.T) {
	text, err := os.ReadFile(threatModel)
	if err != nil {
		t.Fatal(err)
	}
	faults, tests := threatFaults(string(text), readSource)
	for _, fault := range faults {
		t.Error(fault)
	}
	if tests < 100 {
		t.Errorf("only %d tests were found", tests)
	}
}

func TestFaultsOfTheThreatModelAreNoticed(t *testing.T) {
	text, err := os.ReadFile(threatModel)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(string) string{
		"a test that is not there": func(s string) string { return strings.Replace(s, ":TestRateLimit`", ":TestRate`", 1) },
		"a file that is not there": func(s string) string {
			return strings.Replace(s, "`server/crowd_test.go:", "`server/cloud_test.go:", 1)
		},
		"a row without a test": func(s string) string { return strings.Replace(s, "`server/config_test.go:TestDefaults`", "", 1) },
		"a row twice": func(s string) string {
			return regexp.MustCompile("(?m)^\\| plaintext on the network .*\n").ReplaceAllString(s, "$0$0")
		},
		"an invariant left out": func(s string) string { return strings.Replace(s, "| I13 tenants", "| tenants", 1) },
		"a threat that nothing holds yet": func(s string) string {
			return strings.Replace(s, "| its own listener,", "| not yet: its own listener,", 1)
		},
	} {
		changed := change(string(text))
		if faults, _ := threatFaults(changed, readSource); changed == string(text) || len(faults) != 1 {
			t.Errorf("%s: %v", name, faults)
		}
	}
}
