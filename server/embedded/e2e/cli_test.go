package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

// commandLine is the built CLI, which calls one instance as one client.
type commandLine struct {
	t       *testing.T
	program string
	env     []string
}

func (d *deployment) commandLine(t *testing.T, i *instance, who delegation.Principal) *commandLine {
	t.Helper()
	return &commandLine{t: t, program: built(t, rootModule, "./client/cmd/deputy"), env: d.environment(i, who)}
}

// built builds a program of one of the modules, once. It uses the race detector where the tests do,
// because most of the program is then in the build cache already.
func built(t *testing.T, module, name string) (program string) {
	t.Helper()
	program = filepath.Join(filepath.Dir(authority.file), filepath.Base(name))
	if _, err := os.Stat(program); err == nil {
		return program
	}
	args := []string{"build", "-o", program}
	if raced() {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, name)...)
	build.Dir = module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	return program
}

// Directories of the modules, relative to this package.
const (
	rootModule     = "../../.."
	embeddedModule = ".."
)

func (d *deployment) environment(i *instance, who delegation.Principal) []string {
	return append(os.Environ(),
		"DEPUTY_ISSUER="+d.issuer, "DEPUTY_JWKS=http://"+i.http+"/oauth2/jwks", "DEPUTY_ADDR="+i.grpc, "DEPUTY_PLAINTEXT=true",
		"DEPUTY_CLIENT_ID="+string(who), "DEPUTY_CLIENT_KEY="+d.keyPath(who))
}

// run returns what was printed and the exit code.
func (c *commandLine) run(stdin string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.program, args...)
	cmd.Env, cmd.Stdin = c.env, strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// json runs with --json, requires the exit code, and decodes the answer.
func (c *commandLine) json(into any, wantCode int, stdin string, args ...string) {
	c.t.Helper()
	stdout, stderr, code := c.run(stdin, append(args, "--json")...)
	if err := json.Unmarshal([]byte(stdout), into); err != nil || code != wantCode {
		c.t.Errorf("deputy %s: exit code %d, %v\n%s%s", strings.Join(args, " "), code, err, stdout, stderr)
	}
}

func TestCommandLine(t *testing.T) {
	d := deploy(t, plan{})
	i := d.start()
	c := d.commandLine(t, i, planner)
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		check(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	toCalendar := []string{"--audience", calendarAudience, "--scope"}

	parent, stderr, code := c.run(d.root().Reveal(), append([]string{"exchange", "--subject-token-file", "-"}, append(toCalendar, "calendar.read calendar.write")...)...)
	if code != 0 || strings.Count(parent, ".") != 2 {
		t.Fatalf("exit code %d: %s%s", code, parent, stderr)
	}
	var child struct {
		AccessToken string `json:"access_token"`
		JTI         string `json:"jti"`
		Entry       uint64 `json:"entry"`
		Scope       string `json:"scope"`
	}
	handOn := append([]string{"exchange", "--subject-token-file", file("parent.jwt", parent),
		"--actor-token-file", file("researcher.jwt", d.naming(researcher).Reveal()), "--max-depth", "0", "--lifetime", "1m"}, toCalendar...)
	c.json(&child, 0, "", append(handOn, "calendar.read")...)
	if child.Entry != 2 || child.Scope != "calendar.read" {
		t.Errorf("exchange: %+v", child)
	}

	var decoded struct {
		Verified bool            `json:"verified"`
		InForce  bool            `json:"in_force"`
		Claims   json.RawMessage `json:"claims"`
	}
	c.json(&decoded, 0, child.AccessToken, "decode", "-")
	claims, err := delegation.DecodeClaims(decoded.Claims)
	if err != nil || !decoded.Verified || !decoded.InForce || claims.ID != child.JTI || claims.Act.Current() != researcher {
		t.Errorf("decode: %+v %v", decoded, err)
	}
	explained, _, _ := c.run(child.AccessToken, "decode", "-")
	for _, want := range []string{"VERIFIED", "agent:researcher acts for user:alice", "agent:planner", "may delegate  no"} {
		if !strings.Contains(explained, want) {
			t.Errorf("decode does not show %q:\n%s", want, explained)
		}
	}

	var chain struct {
		Subject string `json:"subject"`
		Source  string `json:"source"`
		Grants  []struct {
			Entry   uint64   `json:"entry"`
			Actor   string   `json:"actor"`
			Dropped []string `json:"dropped_scope"`
		} `json:"grants"`
	}
	c.json(&chain, 0, "", "chain", child.JTI)
	if chain.Source != "ledger" || len(chain.Grants) != 2 || chain.Grants[1].Actor != "agent:researcher" || strings.Join(chain.Grants[1].Dropped, " ") != "calendar.write" {
		t.Errorf("chain: %+v", chain)
	}

	var refusal struct {
		Error  string `json:"error"`
		Reason string `json:"reason"`
	}
	c.json(&refusal, 1, "", append(handOn, "mail.read")...)
	if refusal.Error != "invalid_scope" || refusal.Reason != string(delegation.ScopeExceedsParent) {
		t.Errorf("escalation: %+v", refusal)
	}
	forged, stderr, code := c.run(altered(t, child.AccessToken), "decode", "-")
	if code != 1 || !strings.Contains(forged+stderr, "NOT VERIFIED") {
		t.Errorf("an altered token: exit code %d\n%s%s", code, forged, stderr)
	}
	i.stop()
	c.json(&refusal, 3, "", append(handOn, "calendar.read", "--timeout", "2s")...)
	if refusal.Reason != string(delegation.DependencyDown) {
		t.Errorf("without Deputy: %+v", refusal)
	}
}
