package embedded

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/openfga/language/pkg/go/transformer"
	"github.com/openfga/openfga/pkg/storage/migrate"
	"github.com/openfga/openfga/pkg/storage/sqlcommon"
	"github.com/openfga/openfga/pkg/storage/sqlite"
	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// remembering is a checker of the store that remembers decisions.
func (s *store) remembering(t testing.TB, mapping policy.Mapping) *policy.Checker {
	t.Helper()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: s.id, ModelID: s.model, Transport: s, Mapping: mapping, Timeout: time.Minute, Cache: policy.Cache{Enabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// startSQLite is an OpenFGA on a database, as an operator runs it.
func startSQLite(t testing.TB) *FGA {
	t.Helper()
	uri := "file:" + filepath.Join(t.TempDir(), "openfga.db")
	if err := migrate.RunMigrations(migrate.MigrationConfig{Engine: "sqlite", URI: uri, Timeout: time.Minute, PingTimeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	datastore, err := sqlite.New(uri, sqlcommon.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(datastore.Close)
	return startWith(t, datastore)
}

// Decisions are as fresh on a database, where rows of the changelog appear when their transaction
// ends.
func TestRememberedOnSQLite(t *testing.T) {
	f := startSQLite(t)
	b := policytest.Remembered{Backend: newStore(t, f, fgamodels.DeputyJSON)}
	if stale := policytest.StaleAnswers(t, b, b, 25); stale != 0 {
		t.Errorf("%d of 50 answers did not reflect the write before them", stale)
	}
	if wrong := policytest.Race(t, b, policytest.NewChecker(t, b), 8, 20); wrong != 0 {
		t.Errorf("%d answers are explained by no state between question and answer", wrong)
	}
}

// thicket has every way in which a relation can follow from others.
const thicket = `model
  schema 1.1
type user
type agent
type team
  relations
    define member: [user, user:*, agent, team#member]
    define lead: [user]
type folder
  relations
    define parent: [folder]
    define owner: [user, team#lead]
    define blocked: [user, user:*, team#member]
    define viewer: ([user, agent, team#member] or owner or viewer from parent) but not blocked
    define editor: [user, agent] and viewer
type document
  relations
    define parent: [folder, team]
    define reader: [user] or viewer from parent or member from parent
    define writer: editor from parent
    define both: reader and writer
`

// Whatever tuple is written or deleted, the decisions that are still remembered are those that
// OpenFGA would give. The model turned around (which changes touch which decisions) is shown
// against the server that reads it forwards.
func TestForgetsWhatAChangeTouches(t *testing.T) {
	model, err := transformer.TransformDSLToJSON(thicket)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, startFGA(t), []byte(model))
	mapping := policy.Mapping{
		Delegator: policy.EdgeRule{Relation: "lead"}, Resource: policy.ObjectRule{Type: "team", Relation: "lead"}, Scopes: make(map[string]policy.ScopeRule),
	}
	var questions []policy.Question
	var tuples []policy.Relation
	objects := map[string][]string{"team": {"member", "lead"}, "folder": {"parent", "owner", "blocked", "viewer", "editor"}, "document": {"parent", "reader", "writer", "both"}}
	for _, typ := range slices.Sorted(maps.Keys(objects)) {
		for _, relation := range objects[typ] {
			for _, id := range []string{"1", "2"} {
				object, scope := typ+":"+id, typ+"."+relation+"."+id
				mapping.Scopes[scope] = policy.ScopeRule{Object: object, Relation: relation}
				for _, user := range []delegation.Principal{"user:a", "user:b", "agent:x", "folder:1", "team:1"} {
					questions = append(questions, policy.Question{Subject: user, Actor: user, Scopes: delegation.Scopes{scope}, Audiences: []string{"1"}})
				}
				for _, user := range []string{"user:a", "user:b", "user:*", "agent:x", "folder:1", "team:1", "team:1#member", "team:2#member", "team:2#lead"} {
					tuples = append(tuples, policy.Relation{User: user, Relation: relation, Object: object})
				}
			}
		}
	}
	// What the model accepts, and nothing that leads back to itself.
	tuples = slices.DeleteFunc(tuples, func(r policy.Relation) bool {
		if strings.HasPrefix(r.User, r.Object) || r.User == "team:2#member" && r.Object == "team:1" {
			return true
		}
		return s.Write(t.Context(), r) != nil || s.Delete(t.Context(), r) != nil
	})
	counting := *s
	var checks atomic.Int64
	counting.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodPost {
			return s.fga.RoundTrip(r)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		checks.Add(int64(bytes.Count(body, []byte("correlation_id"))))
		r.Body = io.NopCloser(bytes.NewReader(body))
		return s.fga.RoundTrip(r)
	})
	remembering, direct := counting.remembering(t, mapping), s.checker(t, mapping)
	// answers returns for each question whether its scope is held, which is reported first.
	answers := func(c *policy.Checker) []bool {
		held := make([]bool, len(questions))
		for i, answer := range c.AskAll(t.Context(), questions) {
			if answer.Err != nil {
				t.Fatal(answer.Err)
			}
			held[i] = answer.Decision.Allowed || answer.Decision.Missing.Reason != delegation.ScopeNotPermitted
		}
		return held
	}
	there := make(map[policy.Relation]bool)
	changes, differing, before := 0, 0, answers(direct)
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 3).Draw(rt, "changes") {
			tuple := rapid.SampledFrom(tuples).Draw(rt, "tuple")
			change := s.Write
			if there[tuple] {
				change = s.Delete
			}
			if err := change(t.Context(), tuple); err != nil {
				rt.Fatal(err)
			}
			there[tuple] = !there[tuple]
			got, want := answers(remembering), answers(direct)
			if changes++; !slices.Equal(before, want) {
				differing++
			}
			before = want
			for i, q := range questions {
				if got[i] != want[i] {
					rt.Errorf("%s of %s: after %s became %v it is %v, remembered %v", q.Scopes[0], q.Subject, tuple, there[tuple], want[i], got[i])
				}
			}
		}
	})
	if differing < changes/4 {
		t.Errorf("only %d of %d changes changed a decision", differing, changes)
	}
	if all, asked := changes*len(questions), int(checks.Load()); asked == 0 || asked > all/2 {
		t.Errorf("%d of %d decisions were asked: too few are remembered", asked, all)
	}
	t.Logf("%d changes, %d of which changed decisions; %d of %d decisions asked", changes, differing, checks.Load(), changes*len(questions))
}

// Decisions that depend on a condition are asked each time.
func TestConditionsAreNotRemembered(t *testing.T) {
	model, err := transformer.TransformDSLToJSON(`model
  schema 1.1
type user
type agent
  relations
    define delegator: [user, user with working_hours]
    define operator: [user]
    define boss: delegator
condition working_hours(hour: int) {
  hour < 18
}
`)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, startFGA(t), []byte(model))
	requests := make(map[string]int)
	s.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		requests[filepath.Base(r.URL.Path)]++
		return s.fga.RoundTrip(r)
	})
	for relation, want := range map[string]int{"delegator": 3, "operator": 1, "boss": 3} {
		c := s.remembering(t, policy.Mapping{Resource: policy.ObjectRule{Type: "agent", Relation: relation}})
		q, _ := policytest.Access("user:a", "planner")
		before := requests["batch-check"]
		for range 3 {
			if d, err := c.Ask(t.Context(), q); err != nil || d.Allowed {
				t.Fatal(d, err)
			}
		}
		if n := requests["batch-check"] - before; n != want {
			t.Errorf("%s was asked %d times of 3, want %d", relation, n, want)
		}
	}
}

// BenchmarkAskers has 64 goroutines put the question of one exchange (eight checks) to a server in
// the same process, directly or over TCP. It reports the processor time of a question on both sides
// together. "hit" always puts the same question. "new actor" hands down to an agent that was never
// asked about (five of nine checks are new). "written" has another relation written every hundred
// questions.
//
//	go test -run '^$' -bench Askers -benchtime 3000x .
func BenchmarkAskers(b *testing.B) {
	for _, tuples := range []int{1_000, 10_000} {
		s := filledStore(b, tuples)
		server := httptest.NewServer(s.fga)
		defer server.Close()
		ways := map[string]policy.Config{
			"process": {URL: "http://openfga.test", Transport: s.fga},
			"tcp":     {URL: server.URL},
		}
		for _, kind := range []string{"hit", "new actor", "written"} {
			for _, way := range slices.Sorted(maps.Keys(ways)) {
				for _, memory := range []bool{false, true} {
					b.Run(fmt.Sprintf("%s/%s/tuples=%d/memory=%v", kind, way, tuples, memory), func(b *testing.B) {
						config := ways[way]
						config.StoreID, config.ModelID, config.Timeout = s.id, s.model, time.Minute
						config.Cache = policy.Cache{Enabled: memory, Overlap: policy.MinCacheOverlap}
						c, err := policy.New(config)
						if err != nil {
							b.Fatal(err)
						}
						defer c.Close()
						benchmarkAskers(b, s, c, kind)
					})
				}
			}
		}
	}
}

// BenchmarkReadChanges is the server's cost of one reading of the changelog without changes.
func BenchmarkReadChanges(b *testing.B) {
	for _, tuples := range []int{1_000, 10_000} {
		s := filledStore(b, tuples)
		b.Run(fmt.Sprintf("tuples=%d", tuples), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				since := time.Now().Add(-policy.MinCacheOverlap).UTC().Format(time.RFC3339Nano)
				r := httptest.NewRequest(http.MethodGet, "/stores/"+s.id+"/changes?page_size=100&start_time="+since, nil)
				if response, err := s.fga.RoundTrip(r); err != nil || response.StatusCode != http.StatusOK {
					b.Fatal(response, err)
				}
			}
		})
	}
}

// filledStore has the question's relations and others, up to a number, older than the window.
func filledStore(b *testing.B, tuples int) *store {
	s := newStore(b, startFGA(b), fgamodels.DeputyJSON)
	_, needed := policytest.Exchange()
	for i := len(needed); i < tuples; i++ {
		needed = append(needed, policy.Relation{User: fmt.Sprint("user:u", i%997), Relation: "holder", Object: fmt.Sprint("scope:s", i)})
	}
	if err := s.Write(b.Context(), needed...); err != nil {
		b.Fatal(err)
	}
	time.Sleep(policy.MinCacheOverlap + time.Second) // OpenFGA stamps changes by the real clock: younger ones are in the window
	return s
}

func benchmarkAskers(b *testing.B, s *store, c *policy.Checker, kind string) {
	q, _ := policytest.Exchange()
	var count atomic.Int64
	if _, err := c.Ask(b.Context(), q); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32) // times two processors
	before := processorTime()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			own, n := q, count.Add(1)
			switch {
			case kind == "new actor":
				own.Actor = delegation.Principal(fmt.Sprintf("agent:new-%p-%d", b, n))
				own.Edges = append(slices.Clone(q.Edges), policy.Edge{From: q.Actor, To: own.Actor})
			case kind == "written" && n%100 == 0:
				if err := s.Write(b.Context(), policy.Relation{User: "user:other", Relation: "holder", Object: fmt.Sprintf("scope:w%p%d", b, n)}); err != nil {
					b.Error(err)
				}
			}
			if d, err := c.Ask(b.Context(), own); err != nil || d.Allowed != (kind != "new actor") {
				b.Error(d, err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(processorTime()-before)/float64(b.N)/1e3, "cpu-µs/op")
}

// processorTime is the processor time of this process so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
