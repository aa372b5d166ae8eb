package embedded

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// child is an embedded Deputy in a process of its own.
type child struct {
	*exec.Cmd
	http  string
	store string // address of the demo's store at OpenFGA's API
}

func startChild(t *testing.T, dir, http string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(os.Args[0])}
	c.Env, c.Stderr = append(os.Environ(), beEmbedded+"="+dir, embeddedHTTP+"="+http), os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("it printed %q: %v", line, err)
	}
	c.http, c.store, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	return c
}

// kill is kill -9.
func (c *child) kill() {
	_ = c.Process.Kill()
	_ = c.Wait()
}

// change writes or deletes one tuple through OpenFGA's API, and returns whether that was acknowledged.
func (c *child) change(what, user string) bool {
	body := fmt.Sprintf(`{"%s":{"tuple_keys":[{"user":"%s","relation":"delegator","object":"agent:planner"}]}}`, what, user)
	response, err := http.Post(c.store+"/write", "application/json", strings.NewReader(body))
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

// fetch reads an answer of OpenFGA's API.
func (c *child) fetch(t *testing.T, path, token string, into any) {
	t.Helper()
	method, body := http.MethodPost, io.Reader(strings.NewReader(fmt.Sprintf(`{"tuple_key":{"object":"agent:planner","relation":"delegator"},"page_size":100,"continuation_token":"%s"}`, token)))
	if path == "/changes" {
		method, body, path = http.MethodGet, nil, path+"?page_size=100&continuation_token="+token
	}
	request, err := http.NewRequestWithContext(t.Context(), method, c.store+path, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response.Status, err)
	}
}

// delegators returns who delegates to the planner.
func (c *child) delegators(t *testing.T) (list []string) {
	t.Helper()
	var found struct {
		Tuples []struct{ Key struct{ User string } }
		Token  string `json:"continuation_token"`
	}
	for {
		c.fetch(t, "/read", found.Token, &found)
		for _, r := range found.Tuples {
			list = append(list, r.Key.User)
		}
		if found.Tuples = nil; found.Token == "" {
			return list
		}
	}
}

// TestKilledWhileRelationshipsAreWritten kills the process while relationships are written and
// deleted. The next one has what was acknowledged, and of the rest each change whole or not at all.
func TestKilledWhileRelationshipsAreWritten(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	dir, writing := filepath.Join(t.TempDir(), "data"), 6
	held := make(map[string]bool)  // what was acknowledged last
	doubt := make(map[string]bool) // whose last change was not acknowledged
	var address, token string      // of the issuer; of the changelog, and
	seen := 0                      // how many changes were read up to there
	for round := range 3 {
		c := startChild(t, dir, cmp.Or(address, "127.0.0.1:0"))
		address = c.http
		check := func(when string) {
			t.Helper()
			there := c.delegators(t)
			for user, want := range held {
				if !doubt[user] && slices.Contains(there, user) != want {
					t.Errorf("%s of round %d: %s is there: %t, acknowledged: %t", when, round, user, !want, want)
				}
			}
			if !slices.Contains(there, string(alice)) {
				t.Errorf("%s of round %d: the demo's relationship is gone: %q", when, round, there)
			}
			for _, user := range there { // what was in doubt is settled now
				held[user] = true
			}
			for user := range doubt {
				held[user] = slices.Contains(there, user)
			}
			clear(doubt)
		}
		check("at the start")
		var changes struct {
			Changes []struct{}
			Token   string `json:"continuation_token"`
		}
		c.fetch(t, "/changes", token, &changes)
		if round > 0 && len(changes.Changes) == 0 {
			t.Errorf("round %d: the changelog does not go on after %q", round, token)
		}
		token, seen = changes.Token, seen+len(changes.Changes)

		var writers sync.WaitGroup
		var mu sync.Mutex
		acknowledged := 0
		killed := make(chan struct{})
		for w := range writing {
			writers.Go(func() {
				for i := 0; ; i++ {
					user := fmt.Sprintf("user:%d-%d-%d", round, w, i/2)
					what := []string{"writes", "deletes"}[i%2]
					if i%6 == 3 { // this one stays
						continue
					}
					ok := c.change(what, user)
					mu.Lock()
					if !ok {
						doubt[user] = true
						mu.Unlock()
						return
					}
					held[user] = what == "writes"
					if acknowledged++; acknowledged == 30 {
						close(killed)
					}
					mu.Unlock()
				}
			})
		}
		<-killed
		c.kill()
		writers.Wait()
	}
	c := startChild(t, dir, address)
	there := c.delegators(t)
	for user, want := range held {
		if !doubt[user] && slices.Contains(there, user) != want {
			t.Errorf("at the end: %s is there: %t, acknowledged: %t", user, !want, want)
		}
	}
	if seen < 60 { // two rounds
		t.Errorf("only %d changes were read", seen)
	}
}

// TestRestartKeepsRelationships withdraws the demo's consent. It does not come back with a restart,
// and the story, which needs it, is not played.
func TestRestartKeepsRelationships(t *testing.T) {
	dir := t.TempDir()
	consent := policy.Relation{User: string(planner), Relation: "delegator", Object: string(researcher)}
	more := policy.Relation{User: string(researcher), Relation: "holder", Object: "scope:payments.send"}
	first, stop := start(t, Config{Dir: dir})
	if err := first.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.fga.DeleteTuples(t.Context(), first.store, consent), first.fga.WriteTuples(t.Context(), first.store, more)); err != nil {
		t.Fatal(err)
	}
	stop()

	second, stop := start(t, Config{Dir: dir, HTTP: first.config.HTTP})
	d := &demo{Embedded: second, transport: &http.Transport{}}
	defer d.transport.CloseIdleConnections()
	hand := func(d *demo) error {
		return d.as(planner, func(c *client.Client) error {
			d.plannerToken = &client.Token{AccessToken: client.NewSecret(mustRead(t, dir, "planner.jwt"))}
			_, err := d.toResearcher(t.Context(), c)
			return err
		})
	}
	if err := hand(d); delegation.AsError(err).Reason != delegation.EdgeNotPermitted {
		t.Errorf("without consent: %v", err)
	}
	var story bytes.Buffer
	if err := second.Demo(t.Context(), &story); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The demo is not played", "deleted: agent:planner delegator agent:researcher", "written: agent:researcher holder scope:payments.send", "Deputy is serving"} {
		if !strings.Contains(story.String(), want) {
			t.Errorf("no %q in\n%s", want, story.String())
		}
	}
	if err := errors.Join(second.fga.WriteTuples(t.Context(), second.store, consent), second.fga.DeleteTuples(t.Context(), second.store, more)); err != nil {
		t.Fatal(err)
	}
	stop()

	third, _ := start(t, Config{Dir: dir, HTTP: first.config.HTTP})
	if err := third.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Errorf("the story with what it began with: %v", err)
	}
}

// TestUsedAssertionAfterARestart loses what the process held in the place of Redis: the ledger's row
// refuses the assertion.
func TestUsedAssertionAfterARestart(t *testing.T) {
	dir := t.TempDir()
	first, stop := start(t, Config{Dir: dir})
	if err := first.Demo(t.Context(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	key, err := client.LoadKey(first.clientKeyPath(planner))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := client.NewAssertion(client.AssertionConfig{Issuer: first.Issuer(), ClientID: string(planner), Key: key})
	if err != nil {
		t.Fatal(err)
	}
	used, err := fresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	use := func(e *Embedded) error {
		c, err := client.New(client.Config{Address: e.config.GRPC, Transport: client.PlaintextLoopback, Credential: func(context.Context) (string, error) { return used, nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Exchange(t.Context(), client.ExchangeRequest{
			SubjectToken: client.NewSecret(mustRead(t, dir, "planner.jwt")),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
		})
		return err
	}
	if err := use(first); err != nil {
		t.Fatal(err)
	}
	stop()
	second, _ := start(t, Config{Dir: dir, HTTP: first.config.HTTP})
	if err := use(second); delegation.AsError(err).Reason != delegation.AssertionReplayed {
		t.Errorf("the same assertion after a restart: %v", err)
	}
}

// TestRememberedAcrossARestart has a checker with a memory outlive the OpenFGA that it asks. What was
// deleted before the restart, and what is deleted after it, is refused.
func TestRememberedAcrossARestart(t *testing.T) {
	for _, deleted := range []string{"before", "after"} {
		path := filepath.Join(t.TempDir(), "relationships.db")
		var f *FGA
		reopen := func() {
			t.Helper()
			if f != nil {
				f.Close()
			}
			var err error
			if f, err = OpenFGA(t.Context(), path); err != nil {
				t.Fatal(err)
			}
		}
		reopen()
		defer func() { f.Close() }()
		s := newStore(t, f, fgamodels.DeputyJSON)
		s.transport = roundTripper(func(r *http.Request) (*http.Response, error) { return f.RoundTrip(r) })
		q, needed := policytest.Access("user:a", "planner")
		if err := s.Write(t.Context(), needed); err != nil {
			t.Fatal(err)
		}
		c := s.remembering(t, policy.Mapping{})
		defer c.Close()
		ask := func(when string, want bool) {
			t.Helper()
			for range 2 {
				if d, err := c.Ask(t.Context(), q); err != nil || d.Allowed != want {
					t.Fatalf("%s, deleted %s the restart: allowed %t, %v", when, deleted, d.Allowed, err)
				}
			}
		}
		ask("at first", true)
		if deleted == "before" {
			if err := f.DeleteTuples(t.Context(), s.id, needed); err != nil {
				t.Fatal(err)
			}
			reopen()
		} else {
			reopen()
			ask("after the restart", true)
			if err := f.DeleteTuples(t.Context(), s.id, needed); err != nil {
				t.Fatal(err)
			}
		}
		ask("in the end", false)
		reopen()
		ask("after another restart", false)
		if err := f.WriteTuples(t.Context(), s.id, needed); err != nil {
			t.Fatal(err)
		}
		ask("written again", true)
	}
}

// TestOneProcessServesAFolder: a second one would answer from what the first has deleted.
func TestOneProcessServesAFolder(t *testing.T) {
	dir := t.TempDir()
	start(t, Config{Dir: dir})
	_, err := New(t.Context(), Config{Dir: dir, GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Ops: "127.0.0.1:0", Dev: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), "relationships.db: must be used by one process") {
		t.Errorf("a second process: %v", err)
	}
}
