package policy_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"deputy.example/deputy/server/internal/gather"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// remembering makes a checker that remembers, with so much time that no test runs into its end by
// accident.
func remembering(t testing.TB, transport http.RoundTripper, cache policy.Cache, registry *prometheus.Registry) *policy.Checker {
	t.Helper()
	cache.Enabled = true
	config := policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel,
		Transport: transport, Timeout: time.Hour, Cache: cache}
	if registry != nil {
		config.Registerer = registry
	}
	c, err := policy.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func access(i int) (policy.Question, policy.Relation) {
	return policytest.Access(fmt.Sprint("agent:a", i%2), fmt.Sprint("s", i))
}

func question(i int) policy.Question { q, _ := access(i); return q }
func relation(i int) policy.Relation { _, r := access(i); return r }

// allowed asks question i.
func allowed(t testing.TB, c *policy.Checker, i int, want bool) {
	t.Helper()
	if d, err := c.Ask(t.Context(), question(i)); err != nil || d.Allowed != want {
		t.Errorf("question %d: %v, %v; want %v", i, d.Allowed, err, want)
	}
}

func write(t testing.TB, f *policytest.Fake, relations ...policy.Relation) {
	t.Helper()
	if err := f.Write(t.Context(), relations...); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, f *policytest.Fake, relations ...policy.Relation) {
	t.Helper()
	if err := f.Delete(t.Context(), relations...); err != nil {
		t.Fatal(err)
	}
}

// What is remembered is not asked again, and one reading of the changelog serves the whole
// question.
func TestRemembered(t *testing.T) {
	fake := new(policytest.Fake)
	q, needed := policytest.Exchange()
	write(t, fake, needed...)
	c := remembering(t, fake, policy.Cache{}, nil)
	for i := range 10 {
		if d, err := c.Ask(t.Context(), q); err != nil || !d.Allowed || d.Checks != len(needed) {
			t.Fatalf("question %d: %+v, %v", i, d, err)
		}
	}
	if asked := len(fake.Calls()); asked != 1 {
		t.Errorf("ten questions were put to OpenFGA %d times", asked)
	}
	// A new edge of the planner is a decision about the planner, and no other is asked for again.
	write(t, fake, policy.Relation{User: "agent:planner", Relation: "delegator", Object: "agent:other"})
	if d, err := c.Ask(t.Context(), q); err != nil || !d.Allowed || len(fake.Calls()) != 1 {
		t.Errorf("after a change that touches none of it: %+v, %v, %d calls", d, err, len(fake.Calls()))
	}
	remove(t, fake, needed[1])
	if d, err := c.Ask(t.Context(), q); err != nil || d.Allowed || d.Missing.Relation != needed[1] {
		t.Errorf("without %s: %+v, %v", needed[1], d, err)
	}
	if calls := fake.Calls(); len(calls) != 2 || !slices.Equal(calls[1], needed[1:2]) {
		t.Errorf("the change touches one relation, asked were %v", calls[1:])
	}
}

// A decision answers a question only after a reading that was sent later (I11).
func TestAnswersReflectAcknowledgedWrites(t *testing.T) {
	fake := new(policytest.Fake)
	if n := policytest.StaleAnswersOf(t, fake, remembering(t, fake, policy.Cache{}, nil), 20); n != 0 {
		t.Errorf("%d stale answers", n)
	}
}

// held is a request that the test carries out and answers when it likes.
type held struct {
	path          string
	carry, answer chan struct{}
	carried       bool
}

// script lets requests wait.
type script struct {
	fake *policytest.Fake
	mu   sync.Mutex
	wait []*held
	// holds selects the requests that wait; the others are answered at once.
	holds func(path string) bool
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	path := r.URL.Path[strings.LastIndex(r.URL.Path, "/"):]
	if !s.holds(path) {
		return s.fake.RoundTrip(r)
	}
	h := &held{path: path, carry: make(chan struct{}), answer: make(chan struct{})}
	s.mu.Lock()
	s.wait = append(s.wait, h)
	s.mu.Unlock()
	<-h.carry
	response, err := s.fake.RoundTrip(r)
	<-h.answer
	return response, err
}

// waiting returns the requests that wait, the oldest first, also those of questions that still
// waited for others.
func (s *script) waiting() []*held {
	time.Sleep(gather.Linger) // of the bubble's time
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wait)
}

func (s *script) step(h *held) {
	if !h.carried {
		h.carried = true
		close(h.carry)
		synctest.Wait()
		return
	}
	s.mu.Lock()
	s.wait = slices.DeleteFunc(s.wait, func(other *held) bool { return other == h })
	s.mu.Unlock()
	close(h.answer)
	synctest.Wait()
}

// A question uses no reading that was sent before the question arrived: a reading that is under way
// does not include a write that was acknowledged meanwhile.
func TestAReadingUnderWayIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holding := false
		s := &script{fake: new(policytest.Fake), holds: func(path string) bool { return holding && path == "/changes" }}
		write(t, s.fake, relation(0))
		time.Sleep(time.Minute) // so that a reading is one request
		c := remembering(t, s, policy.Cache{}, nil)
		allowed(t, c, 0, true)

		holding = true
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := c.Ask(t.Context(), question(0)); err != nil { // the write comes while it waits: both answers are right
				t.Error(err)
			}
		})
		reading := s.waiting()[0]
		s.step(reading) // OpenFGA has read its changelog
		remove(t, s.fake, relation(0))
		both.Go(func() { allowed(t, c, 0, false) })
		synctest.Wait()
		s.step(reading)
		for len(s.waiting()) > 0 {
			s.step(s.waiting()[0])
		}
		both.Wait()
	})
}

// A decision counts from before its check was sent: a change that is committed while the check
// runs, and is read before the check is answered, must not be forgotten too early.
func TestACheckThatIsOvertakenIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holding := false
		s := &script{fake: new(policytest.Fake), holds: func(path string) bool { return holding && path == "/batch-check" }}
		write(t, s.fake, relation(0), relation(1))
		c := remembering(t, s, policy.Cache{}, nil)
		allowed(t, c, 1, true)
		holding = true
		var first sync.WaitGroup
		first.Go(func() { allowed(t, c, 0, true) })
		check := s.waiting()[0]
		s.step(check)
		holding = false
		remove(t, s.fake, relation(0))
		allowed(t, c, 1, true) // reads that something has changed
		s.step(check)
		first.Wait()
		allowed(t, c, 0, false)
	})
}

// A row that appears behind rows that were read already is found, because each reading begins an
// overlap before the last one.
func TestRowsThatAppearLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := new(policytest.Fake)
		write(t, fake, relation(0), relation(1))
		time.Sleep(time.Minute)
		c := remembering(t, fake, policy.Cache{}, nil)
		allowed(t, c, 0, true)
		for round := range 3 {
			begun := time.Now()
			time.Sleep(3 * time.Second)
			allowed(t, c, 0, true)
			if round > 0 {
				write(t, fake, relation(2)) // another row, which is read before
				allowed(t, c, 0, true)
				remove(t, fake, relation(2))
			}
			time.Sleep(3 * time.Second)
			fake.CommitLate(t.Context(), true, relation(0), begun)
			allowed(t, c, 0, false)
			fake.CommitLate(t.Context(), false, relation(0), begun)
			allowed(t, c, 0, true)
		}
	})
}

// The window moves with time, and rows in it are new only once.
func TestTheWindowMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := new(policytest.Fake)
		c := remembering(t, fake, policy.Cache{}, nil)
		allowed(t, c, 0, false)
		for i := range 200 {
			write(t, fake, relation(2+i))
			time.Sleep(time.Second / 2)
			allowed(t, c, 0, false)
			remove(t, fake, relation(2+i))
			allowed(t, c, 0, false)
		}
		// Every change touched other relations. Relation 0 was asked again within a minute, because
		// decisions expire.
		if calls := len(fake.Calls()); calls < 2 || calls > 3 {
			t.Errorf("asked %d times in 100 s", calls)
		}
		for range 100 { // in one millisecond: only counting distinguishes them
			write(t, fake, relation(0))
			allowed(t, c, 0, true)
			remove(t, fake, relation(0))
			allowed(t, c, 0, false)
		}
	})
}

// changelogFaults are responses to ReadChanges without information.
var changelogFaults = map[string]func(*http.Request, http.RoundTripper) (*http.Response, error){
	"no answer":      func(*http.Request, http.RoundTripper) (*http.Response, error) { return nil, errors.New("refused") },
	"500":            body(500, `{}`),
	"403":            body(403, `{"code":"forbidden","message":"no"}`),
	"token refused":  body(400, `{"code":"invalid_continuation_token","message":"no"}`),
	"empty":          body(200, ""),
	"HTML":           body(200, "<html>"),
	"empty object":   body(200, "{}"),
	"null":           body(200, `{"changes":null,"continuation_token":""}`),
	"other case":     body(200, `{"Changes":[],"continuation_token":""}`),
	"twice":          body(200, `{"changes":[],"changes":[],"continuation_token":""}`),
	"unknown change": body(200, `{"changes":[{"tuple_key":{"user":"a:b","relation":"c","object":"d:e"},"operation":"TUPLE_OPERATION_MERGE","timestamp":"x"}],"continuation_token":"x"}`),
	"no tuple":       body(200, `{"changes":[{"tuple_key":{},"operation":"TUPLE_OPERATION_WRITE","timestamp":"x"}],"continuation_token":"x"}`),
	"no token": rewritten(func(s string) string {
		return `{"changes":[{"tuple_key":{"user":"a:b","relation":"c","object":"d:e"},"operation":"TUPLE_OPERATION_WRITE","timestamp":"x"}],"continuation_token":""}`
	}),
	"same page for ever": body(200, `{"changes":[{"tuple_key":{"user":"a:b","relation":"c","object":"d:e"},"operation":"TUPLE_OPERATION_WRITE","timestamp":"x"}],"continuation_token":"x"}`),
	"no time":            dated(""),
	"another time":       dated(time.Unix(0, 0).UTC().Format(http.TimeFormat)),
	"later time":         dated(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)),
	"hangs": func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	},
	"panics": func(*http.Request, http.RoundTripper) (*http.Response, error) { panic("inside") },
}

func dated(date string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if response.Header.Del("Date"); date != "" {
			response.Header.Set("Date", date)
		}
		return response, err
	}
}

// With any fault of the changelog, questions are asked directly and answered correctly. If that
// fails too, they are unavailable. When the changelog works again, decisions are remembered again.
func TestChangelogFaults(t *testing.T) {
	q, needed := policytest.Exchange()
	for name, fault := range changelogFaults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broken, down := false, false
				fake := &policytest.Fake{Answer: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
					switch changes := strings.HasSuffix(r.URL.Path, "/changes"); {
					case broken && changes:
						return fault(r, next)
					case down && !changes:
						return nil, errors.New("down")
					}
					return next.RoundTrip(r)
				}}
				write(t, fake, needed...)
				c := remembering(t, fake, policy.Cache{}, nil)
				ask := func(allowed bool) {
					t.Helper()
					if d, err := c.Ask(t.Context(), q); err != nil || d.Allowed != allowed {
						t.Errorf("%+v, %v; want %v", d, err, allowed)
					}
				}
				ask(true)
				for range 3 {
					time.Sleep(2 * time.Second)
					broken = true
					remove(t, fake, needed[0])
					ask(false)
					write(t, fake, needed[0])
					ask(true)
					remove(t, fake, needed[0])
					ask(false)
					down = true
					d, err := c.Ask(t.Context(), q)
					unavailable(t, d, err)
					broken, down = false, false
					time.Sleep(2 * time.Second)
					ask(false)
					write(t, fake, needed[0])
					ask(true)
				}
				if name == "panics" {
					return // after which nothing is remembered
				}
				before := len(fake.Calls())
				if ask(true); len(fake.Calls()) != before {
					t.Error("nothing is remembered again")
				}
			})
		})
	}
}

// A changelog whose server has another time may leave changes out of the window: nothing is
// remembered with it.
func TestChangelogOfAnotherTime(t *testing.T) {
	for _, apart := range []time.Duration{-time.Hour, -5 * time.Second, 5 * time.Second, time.Hour} {
		other := dated(time.Now().Add(apart).UTC().Format(http.TimeFormat))
		fake := &policytest.Fake{Answer: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/changes") {
				return other(r, next)
			}
			return next.RoundTrip(r)
		}}
		c := remembering(t, fake, policy.Cache{}, nil)
		allowed(t, c, 0, false)
		if allowed(t, c, 0, false); len(fake.Calls()) != 2 || c.Remembers() != 0 {
			t.Errorf("%v apart: %d checks, %d decisions are remembered", apart, len(fake.Calls()), c.Remembers())
		}
	}
}

// A changelog that has lost rows belongs to another history: everything is asked again.
func TestRowsThatAreGone(t *testing.T) {
	fake := new(policytest.Fake)
	write(t, fake, relation(0))
	c := remembering(t, fake, policy.Cache{}, nil)
	allowed(t, c, 0, true)
	fake.ForgetChanges()
	fake.Judge = func(policy.Relation) (yes, ok bool) { return false, true }
	allowed(t, c, 0, false)
}

// A changelog that leaves changes out is found out when a decision has grown old, and is not relied
// on again.
func TestTheChangelogIsCaughtLying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		fake := new(policytest.Fake)
		silent := false
		fake.Judge = func(policy.Relation) (yes, ok bool) { return false, silent }
		write(t, fake, relation(0))
		c := remembering(t, fake, policy.Cache{}, registry)
		allowed(t, c, 0, true)
		silent = true          // as if it were deleted where the changelog does not show it
		allowed(t, c, 0, true) // the promise depends on this
		if n := counted(t, registry, "deputy_policy_contradicted_total"); n != 0 {
			t.Errorf("contradicted %v times", n)
		}
		time.Sleep(time.Minute + time.Second)
		allowed(t, c, 0, false)
		if n := counted(t, registry, "deputy_policy_contradicted_total"); n != 1 {
			t.Errorf("contradicted %v times", n)
		}
		silent = false
		allowed(t, c, 0, true)
		silent = true
		allowed(t, c, 0, false)
	})
}

func counted(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// More changes than are read at once: nothing is remembered until there are fewer.
func TestTooManyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := new(policytest.Fake)
		write(t, fake, relation(0))
		c := remembering(t, fake, policy.Cache{}, nil)
		allowed(t, c, 0, true)
		for i := range 300 { // three pages
			write(t, fake, relation(2+i))
		}
		remove(t, fake, relation(0))
		allowed(t, c, 0, false)
		before := len(fake.Calls())
		if allowed(t, c, 0, false); len(fake.Calls()) != before {
			t.Error("three pages are too many")
		}
		for i := range 100 {
			write(t, fake, relation(1000+i))
		}
		write(t, fake, relation(0))
		for range 2 {
			allowed(t, c, 0, true)
			remove(t, fake, relation(0))
			allowed(t, c, 0, false)
			write(t, fake, relation(0))
		}
		time.Sleep(time.Minute)
		allowed(t, c, 0, true)
		before = len(fake.Calls())
		if allowed(t, c, 0, true); len(fake.Calls()) != before {
			t.Error("nothing is remembered again")
		}
	})
}

// A caller that cancels does not affect the others.
func TestACallerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holding := false
		s := &script{fake: new(policytest.Fake), holds: func(path string) bool { return holding && path == "/changes" }}
		write(t, s.fake, relation(0))
		c := remembering(t, s, policy.Cache{}, nil)
		allowed(t, c, 0, true)
		holding = true
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			d, err := c.Ask(ctx, question(0))
			unavailable(t, d, err)
		})
		synctest.Wait()
		all.Go(func() { allowed(t, c, 0, true) })
		all.Go(func() { allowed(t, c, 0, true) })
		synctest.Wait()
		readings := s.fake.Readings()
		cancel()
		for len(s.waiting()) > 0 {
			s.step(s.waiting()[0])
		}
		all.Wait()
		// Each reading is two requests, the second of which finds nothing more: one for the first,
		// one for both others.
		if n := s.fake.Readings() - readings; n != 4 {
			t.Errorf("three questions took %d requests for changes", n)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	c := remembering(t, new(policytest.Fake), policy.Cache{Entries: 100}, nil)
	for i := range 1000 {
		allowed(t, c, i, false)
		if n := c.Remembers(); n > 100 {
			t.Fatalf("%d decisions are kept", n)
		}
	}
	if n := c.Remembers(); n < 50 {
		t.Errorf("only %d decisions are kept", n)
	}
}

func TestGrantsAreBounded(t *testing.T) {
	fake := new(policytest.Fake)
	c := remembering(t, fake, policy.Cache{Entries: 320}, nil)
	fake.Judge = func(policy.Relation) (yes, ok bool) { return true, true }
	kept := 0
	for i := range 100 {
		allowed(t, c, i, true)
		kept = max(kept, c.Grants())
	}
	if kept != 20 {
		t.Errorf("%d questions are kept beside 320 decisions, want 20", kept)
	}
}

// A question is granted as a whole only if it is the very same, and what it asks for in the same
// order.
func TestGrantsAreOfTheQuestion(t *testing.T) {
	fake := new(policytest.Fake)
	q, needed := policytest.Exchange()
	write(t, fake, needed...)
	c := remembering(t, fake, policy.Cache{}, nil)
	for range 2 {
		if d, err := c.Ask(t.Context(), q); err != nil || !d.Allowed {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	if n := c.Grants(); n != 1 {
		t.Fatalf("%d questions are kept", n)
	}
	for name, change := range map[string]func(*policy.Question){
		"another scope":       func(q *policy.Question) { q.Scopes = append(slices.Clone(q.Scopes), "payments.send") },
		"a scope for another": func(q *policy.Question) { q.Scopes = append(slices.Clone(q.Scopes[1:]), "payments.send") },
		"another audience":    func(q *policy.Question) { q.Audiences = []string{"https://bank.example"} },
		"a scope as audience": func(q *policy.Question) { q.Audiences, q.Scopes = append(slices.Clone(q.Audiences), q.Scopes...), nil },
		"another actor": func(q *policy.Question) {
			q.Edges = slices.Clone(q.Edges)
			q.Edges[len(q.Edges)-1].To, q.Actor = "agent:unrelated", "agent:unrelated"
		},
		"another subject": func(q *policy.Question) {
			q.Edges = slices.Clone(q.Edges)
			q.Edges[0].From, q.Subject = "user:mallory", "user:mallory"
		},
	} {
		other := q
		change(&other)
		if d, err := c.Ask(t.Context(), other); err != nil || d.Allowed {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	// What is wrong with the question is found out though the same relations were granted.
	gap := q
	gap.Edges = slices.Clone(q.Edges)
	gap.Edges[0].From = "user:mallory"
	if d, err := c.Ask(t.Context(), gap); err == nil || d.Allowed {
		t.Errorf("a gap in the chain: %+v, %v", d, err)
	}
}

func TestCacheConfigIsChecked(t *testing.T) {
	for _, cache := range []policy.Cache{{Entries: -1}, {Overlap: time.Second}, {Overlap: -time.Minute}, {Overlap: time.Hour}} {
		_, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Cache: cache})
		if err == nil || !strings.Contains(err.Error(), "cache") {
			t.Errorf("%+v: %v", cache, err)
		}
	}
}

// In any interleaving of questions, writes, transactions that appear late, requests carried out and
// requests answered, no answer is older than its question.
func TestInterleavings(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if wrong := interleave(t, rt); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// The same interleavings on every run: a checker that lacks one of the protections of its memory
// (see the mutants) answers wrongly in one of them at least.
func TestFixedInterleavings(t *testing.T) {
	script := rapid.Custom(func(rt *rapid.T) string { return interleave(t, rt) })
	seeds := []int{2197, 2240, 3814, 4514, 5572, 6320, 6401, 6408} // a change overtakes a check: rare
	for seed := range 100 {
		seeds = append(seeds, seed)
	}
	for _, seed := range seeds {
		if wrong := script.Example(seed); wrong != "" {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
	}
}

// interleave runs one random script, and returns which answer was wrong.
func interleave(t *testing.T, rt *rapid.T) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		const relations = 3
		s := &script{fake: new(policytest.Fake), holds: func(path string) bool { return path == "/changes" || path == "/batch-check" }}
		c := remembering(t, s, policy.Cache{}, nil)
		var mu sync.Mutex
		var versions [relations]int // odd: the relation is there
		ask := func(which []int) {
			mu.Lock()
			from := versions
			mu.Unlock()
			asked := make([]policy.Question, len(which))
			for i, n := range which {
				asked[i] = question(n)
			}
			answers := c.AskAll(t.Context(), asked)
			mu.Lock()
			defer mu.Unlock()
			for i, n := range which {
				d, err := answers[i].Decision, answers[i].Err
				if err != nil || from[n] == versions[n] && d.Allowed != (from[n]%2 == 1) {
					wrong = fmt.Sprintf("question %d: %v, %v after %d writes", n, d.Allowed, err, from[n])
				}
			}
		}
		var everyone sync.WaitGroup
		for range rapid.IntRange(60, 160).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"ask", "ask", "write", "late", "request", "request", "request", "request", "time"}).Draw(rt, "step") {
			case "ask":
				which := rapid.SliceOfNDistinct(rapid.IntRange(0, relations-1), 1, 2, rapid.ID[int]).Draw(rt, "relations")
				everyone.Go(func() { ask(which) })
			case "write", "late":
				n := rapid.IntRange(0, relations-1).Draw(rt, "relation")
				begun := time.Now().Add(-time.Duration(rapid.IntRange(0, 8000).Draw(rt, "late")) * time.Millisecond)
				mu.Lock()
				s.fake.CommitLate(t.Context(), versions[n]%2 == 1, relation(n), begun)
				versions[n]++
				mu.Unlock()
			case "request":
				if waiting := s.waiting(); len(waiting) > 0 {
					s.step(rapid.SampledFrom(waiting).Draw(rt, "which"))
				}
			case "time":
				if s.waiting() == nil { // requests would run into their deadline
					time.Sleep(time.Duration(rapid.IntRange(0, 40).Draw(rt, "seconds")) * time.Second)
				}
			}
		}
		for waiting := s.waiting(); len(waiting) > 0; waiting = s.waiting() {
			s.step(waiting[0])
		}
		everyone.Wait()
	})
	return wrong
}
