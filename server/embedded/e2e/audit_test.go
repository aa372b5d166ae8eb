package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server"
	"deputy.example/deputy/server/internal/policy"
)

// TestAuditByCommandLine runs the commands of an auditor: which principal did what, what an agent
// can do now, and whether the log is unchanged, from the server and from an export without the
// server.
func TestAuditByCommandLine(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	keep := func(name, content string) string {
		check(t, os.WriteFile(in(name), []byte(content), 0o600))
		return in(name)
	}
	key, err := server.CreateCheckpointKey(in("checkpoint.key"), "https://deputy.example")
	check(t, err)
	keep("acme.vkey", key+"\n")
	d := deploy(t, plan{tenant: fmt.Sprintf("audit: {checkpoint_key: %q, checkpoint_file: %q}\n", in("checkpoint.key"), in("newest"))})
	check(t, d.relations.fga.WriteTuples(t.Context(), d.relations.store, policy.Relation{User: string(calendar), Relation: "auditor", Object: "system:deputy"}))
	i := d.start()
	auditor := d.commandLine(t, i, calendar)
	agent := &commandLine{t: t, program: auditor.program, env: d.environment(i, researcher)}

	asPlanner := d.as(i, planner)
	parent, err := asPlanner.Exchange(t.Context(), stepIn(d.root()))
	check(t, err)
	child, err := asPlanner.Exchange(t.Context(), handDown(parent.AccessToken, d.naming(researcher)))
	check(t, err)
	wider := handDown(parent.AccessToken, d.naming(researcher))
	wider.Child.Audience = []string{mailAudience}
	if _, err := asPlanner.Exchange(t.Context(), wider); delegation.AsError(err).Reason != delegation.AudienceExceedsParent {
		t.Fatalf("escalation: %v", err)
	}
	auditor.signs(in("early"), in("acme.vkey"), 3)

	// The agent's reach, before and after the revocation.
	var reach struct {
		LiveTokens int   `json:"live_tokens"`
		Tokens     []any `json:"tokens"`
		Obtainable []struct {
			Subject string   `json:"subject"`
			Path    []string `json:"path"`
		} `json:"obtainable"`
	}
	auditor.json(&reach, 0, "", "reach", "agent:researcher")
	if reach.LiveTokens != 1 || len(reach.Tokens) != 1 || len(reach.Obtainable) != 1 || reach.Obtainable[0].Subject != "user:alice" {
		t.Errorf("reach: %+v", reach)
	}
	_, err = asPlanner.Revoke(t.Context(), client.RevokeRequest{Target: client.RevokeGrant(child.JTI), Reason: "drill"})
	check(t, err)
	if auditor.json(&reach, 0, "", "reach", "agent:researcher"); reach.LiveTokens != 0 {
		t.Errorf("after the revocation: %+v", reach)
	}

	// The chain, and the refusals.
	var tree struct {
		Grant struct {
			State    client.GrantState `json:"state"`
			Children []struct {
				JTI   string            `json:"jti"`
				State client.GrantState `json:"state"`
			} `json:"children"`
		} `json:"grant"`
	}
	auditor.json(&tree, 0, "", "tree", parent.JTI)
	if c := tree.Grant.Children; tree.Grant.State != client.StateLive || len(c) != 1 || c[0].JTI != child.JTI || c[0].State != client.StateRevoked {
		t.Errorf("tree: %+v", tree)
	}
	found, stderr, code := auditor.run("", "search", "--actor", "agent:researcher", "--outcome", "refused", "--since", "1h", "--json")
	if code != 0 || strings.Count(found, "\n") != 1 || !strings.Contains(found, `"reason":"audience_exceeds_parent"`) {
		t.Errorf("search: exit code %d\n%s%s", code, found, stderr)
	}
	for _, command := range [][]string{{"tree", parent.JTI}, {"reach", "agent:planner"}, {"log", "export"}, {"log", "prove", parent.JTI}} {
		if stdout, stderr, code := agent.run("", command...); code != 1 || stdout != "" {
			t.Errorf("not for the researcher: deputy %s: exit code %d\n%s%s", strings.Join(command, " "), code, stdout, stderr)
		}
	}

	// From the server, and from an export alone.
	export, stderr, code := auditor.run("", "log", "export")
	if code != 0 {
		t.Fatalf("log export: exit code %d\n%s", code, stderr)
	}
	entries := strings.Count(export, "\n")
	auditor.signs(in("late"), in("acme.vkey"), entries)
	log := keep("acme.jsonl", export)
	var verified struct {
		Verified bool   `json:"verified"`
		Last     int    `json:"last"`
		Grants   int    `json:"grants"`
		Entry    uint64 `json:"entry"`
		Rule     string `json:"rule"`
	}
	auditor.json(&verified, 0, "", "log", "verify", "--key", in("acme.vkey"), "--kept", in("early"))
	if !verified.Verified || verified.Grants != 2 || verified.Last < entries {
		t.Errorf("from the server: %+v", verified)
	}
	proof, stderr, code := auditor.run("", "log", "prove", child.JTI, "--key", in("acme.vkey"))
	if code != 0 || !strings.Contains(proof, child.JTI) {
		t.Errorf("log prove: exit code %d\n%s%s", code, proof, stderr)
	}
	for document, want := range map[string]int{proof: 0, strings.Replace(proof, "calendar.read", "calendar.write", 1): 1} {
		if out, code := standalone(t, key, document); code != want {
			t.Errorf("docs/proof/verify.go: exit code %d, want %d\n%s", code, want, out)
		}
	}
	if stdout, stderr, code := auditor.run("", "log", "checkpoint", "--key", in("acme.vkey"), "--kept", in("early")); code != 0 {
		t.Errorf("log checkpoint: exit code %d\n%s%s", code, stdout, stderr)
	}
	i.stop()
	offline := []string{"log", "verify", "-", "--key", in("acme.vkey"), "--checkpoint", in("late"), "--kept", in("early"), "--kept", in("newest.history")}
	if auditor.json(&verified, 0, export, offline...); !verified.Verified || verified.Last != entries {
		t.Errorf("from an export: %+v", verified)
	}
	lines := strings.SplitAfter(export, "\n")
	for name, test := range map[string]struct {
		log   string
		entry uint64
	}{
		"an edit":        {strings.Replace(export, "user:alice", "user:mallory", 1), 1},
		"a wider grant":  {strings.Replace(export, `"scopes":["calendar.read"]`, `"scopes":["payments.send"]`, 1), firstWith(t, log, `"scopes":["calendar.read"]`)},
		"a missing line": {strings.Join(append(lines[:1:1], lines[2:]...), ""), 2},
		"a missing tail": {strings.Join(lines[:entries-1], ""), uint64(entries)},
	} {
		if auditor.json(&verified, 1, test.log, offline...); verified.Verified || verified.Entry != test.entry {
			t.Errorf("%s: %+v, want entry %d", name, verified, test.entry)
		}
	}
}

// standalone verifies a proof with docs/proof/verify.go, which shares no code with Deputy.
func standalone(t *testing.T, key, proof string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", filepath.Join("docs", "proof", "verify.go"), key)
	cmd.Dir, cmd.Stdin = filepath.Join("..", "..", ".."), strings.NewReader(proof)
	content, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(content), cmd.ProcessState.ExitCode()
}

// signs fetches checkpoints until one covers at least so many entries, and keeps it in the file.
func (c *commandLine) signs(file, key string, entries int) {
	c.t.Helper()
	eventually(c.t, readyWithin, func() error {
		checkpoint, stderr, code := c.run("", "log", "checkpoint", "--key", key)
		size := 0
		if _, err := fmt.Sscanf(checkpoint, "deputy.example\n%d\n", &size); err != nil || code != 0 || size < entries {
			return fmt.Errorf("checkpoint of %d entries, exit code %d: %s", size, code, stderr)
		}
		return os.WriteFile(file, []byte(checkpoint), 0o600)
	})
}

// firstWith returns the number of the first entry of an export that holds a text.
func firstWith(t *testing.T, log, text string) uint64 {
	t.Helper()
	f, err := os.Open(log)
	check(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var record struct {
			Seq uint64 `json:"seq"`
		}
		if strings.Contains(lines.Text(), text) {
			check(t, json.Unmarshal(lines.Bytes(), &record))
			return record.Seq
		}
	}
	t.Fatalf("no entry holds %s", text)
	return 0
}
