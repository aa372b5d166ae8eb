package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

// start runs the embedded default on free ports.
func start(t *testing.T, config Config) (e *Embedded, stop func()) {
	t.Helper()
	for _, address := range []*string{&config.GRPC, &config.HTTP, &config.Ops, &config.Dev} {
		if *address == "" {
			*address = "127.0.0.1:0"
		}
	}
	e, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return e, run(t, e)
}

// run serves until the test ends, or until stop is called.
func run(t testing.TB, e *Embedded) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestEveryPrintedCommandWorks(t *testing.T) {
	dir := t.TempDir()
	cli := filepath.Join(dir, "deputy")
	build := exec.Command("go", "build", "-o", cli, "./client/cmd/deputy")
	build.Dir = "../.." // the command line belongs to the root module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the command line: %v\n%s", err, out)
	}
	e, _ := start(t, Config{Dir: filepath.Join(dir, "it's data"), CLI: cli})
	var story bytes.Buffer
	if err := e.Demo(t.Context(), &story); err != nil {
		t.Fatal(err)
	}
	printed := printedCommands(t, story.String())
	steps := (&demo{Embedded: e}).steps()
	if len(printed) != len(steps) {
		t.Fatalf("%d commands were printed and %d meant:\n%s", len(printed), len(steps), strings.Join(printed, "\n"))
	}
	// One shell for all, as a reader has it. A here-document keeps it from reading the commands as
	// its own input where one of them reads standard input.
	var script strings.Builder
	for _, command := range printed {
		fmt.Fprintf(&script, "%s\necho \"== $?\"\n", command)
	}
	shell := exec.Command("sh", "-c", script.String())
	shell.Env = append(os.Environ(), "PATH="+os.Getenv("PATH"))
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	results := strings.Split(string(out), "== ")[1:]
	if len(results) != len(steps) {
		t.Fatalf("%d commands ran:\n%s", len(results), out)
	}
	for i, s := range steps {
		want := "0"
		if s.refused {
			want = "1"
		}
		if got, _, _ := strings.Cut(results[i], "\n"); got != want && !(s.late && got == "3") {
			t.Errorf("exit code %s, want %s:\n%s\n%s", got, want, s.command, out)
		}
	}
	for _, want := range []string{"VERIFIED", "agent:researcher acts for user:alice", "└─ agent:planner", `"token_endpoint"`, `"access_token":"eyJ`, "delegation_not_permitted",
		"CONTAINED agent:researcher", "RESUMED agent:researcher"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the commands' output lacks %q:\n%s", want, out)
		}
	}
}

// printedCommands returns the commands of the story: the lines under the heading that are indented
// by two and are no comment, with their continuation lines.
func printedCommands(t *testing.T, story string) []string {
	t.Helper()
	_, rest, found := strings.Cut(story, "What to try next")
	if !found {
		t.Fatalf("no heading:\n%s", story)
	}
	var commands []string
	for line := range strings.Lines(rest) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "    "):
			commands[len(commands)-1] += "\n" + line
		case strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "  #"):
			commands = append(commands, strings.TrimPrefix(line, "  "))
		}
	}
	return commands
}

func TestRestartKeepsLedgerAndKeys(t *testing.T) {
	dir := t.TempDir()
	first, stop := start(t, Config{Dir: dir})
	if err := first.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(dir, "demo", "researcher.jwt"))
	if err != nil {
		t.Fatal(err)
	}
	before := keyIDs(first)
	stop()

	second, _ := start(t, Config{Dir: dir, HTTP: first.config.HTTP})
	if after := keyIDs(second); !slices.Equal(before, after) {
		t.Errorf("keys were %v and are %v", before, after)
	}
	d := &demo{Embedded: second}
	err = d.as(calendarServer, func(c *client.Client) error {
		answer, err := c.Introspect(t.Context(), client.NewSecret(string(token)))
		if err == nil && !answer.Active {
			err = errors.New("the first run's token is not active")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := second.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	// The first run wrote four entries: two grants and two refusals.
	err = d.as(planner, func(c *client.Client) error {
		unverified, err := delegation.Parse(string(token))
		if err != nil {
			return err
		}
		claims, err := unverified.Claims()
		if err != nil {
			return err
		}
		old, err := c.Chain(t.Context(), claims.ID)
		if err != nil {
			return err
		}
		if last := old.Grants[len(old.Grants)-1]; last.Seq != 2 || last.JTI != claims.ID {
			return fmt.Errorf("the first run's chain ends with %+v", last)
		}
		renewed, err := c.Exchange(t.Context(), client.ExchangeRequest{
			SubjectToken: client.NewSecret(mustRead(t, dir, "planner.jwt")),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
		})
		if err == nil && renewed.Entry != 13 { // six entries a run
			err = fmt.Errorf("the thirteenth entry has number %d", renewed.Entry)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func keyIDs(e *Embedded) []string {
	ids := []string{e.issuer.people.id, e.issuer.workloads.id}
	for _, client := range []delegation.Principal{planner, researcher, calendarServer, security} {
		ids = append(ids, e.keys[client].id)
	}
	return ids
}

func mustRead(t *testing.T, dir, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "demo", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestDataIsForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	e, _ := start(t, Config{Dir: dir})
	if err := e.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 && path != e.path("checkpoint") { // which is public, and written a second after the start
			err = fmt.Errorf("%s has mode %v", path, info.Mode())
		}
		seen++
		return err
	})
	if err != nil || seen < 10 {
		t.Errorf("%d files and folders: %v", seen, err)
	}
}

// TestDemoNoticesAProtectionThatIsGone gives the planner what its refusal needs it to lack.
func TestDemoNoticesAProtectionThatIsGone(t *testing.T) {
	e, _ := start(t, Config{Dir: t.TempDir()})
	too := policy.Relation{User: string(planner), Relation: "holder", Object: "scope:payments.send"}
	if err := e.fga.WriteTuples(t.Context(), e.store, too); err != nil {
		t.Fatal(err)
	}
	if err := e.Demo(t.Context(), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "payments.send") {
		t.Errorf("the demo returns %v", err)
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for flag, config := range map[string]Config{
		"--grpc": {GRPC: taken.Addr().String(), HTTP: "127.0.0.1:0", Ops: "127.0.0.1:0", Dev: "127.0.0.1:0"},
		"--dev":  {GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Ops: "127.0.0.1:0", Dev: taken.Addr().String()},
	} {
		config.Dir = filepath.Join(t.TempDir(), "data")
		_, err := New(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
		if _, err := os.Stat(config.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was created before the address was found taken: %v", flag, err)
		}
	}
}

func TestOtherMachinesAreNotListenedTo(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"} {
		_, err := New(t.Context(), Config{Dir: t.TempDir(), GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Ops: "127.0.0.1:0", Dev: address})
		if err == nil || !strings.Contains(err.Error(), "must be a loopback address") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
