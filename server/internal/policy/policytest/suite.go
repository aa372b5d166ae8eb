// Package policytest is the conformance suite of every OpenFGA that the policy checker may use: the
// [Fake], the one inside the process, and a server of its own. It holds the fake too, for the tests
// of other packages.
package policytest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
)

// Backend is one OpenFGA store with the shipped model.
type Backend interface {
	http.RoundTripper // answers OpenFGA's HTTP API
	IDs() (store, model string)
	Write(ctx context.Context, relations ...policy.Relation) error
	Delete(ctx context.Context, relations ...policy.Relation) error
}

// patience is more than any answer takes, on a machine that has much else to do: these tests are
// about what is answered.
const patience = time.Minute

// NewChecker asks the backend with the default mapping.
func NewChecker(t testing.TB, b Backend) *policy.Checker {
	t.Helper()
	store, model := b.IDs()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: store, ModelID: model, Transport: b, Cache: cacheOf(b), Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Remembered is a backend whose checkers remember decisions.
type Remembered struct{ Backend }

func cacheOf(b Backend) policy.Cache {
	_, remembered := b.(Remembered)
	return policy.Cache{Enabled: remembered}
}

// Run shows that the checker's questions are answered as they are meant, whether it remembers
// decisions or not. newBackend makes a new, empty store for each test.
func Run(t *testing.T, newBackend func(t *testing.T) Backend) {
	for name, test := range map[string]func(*testing.T, Backend){
		"Ready":               testReady,
		"EveryRelationCounts": testEveryRelationCounts,
		"PairsCount":          testPairsCount,
		"NamesAreNotPatterns": testNamesAreNotPatterns,
		"Freshness":           testFreshness,
		"ManyQuestions":       testManyQuestions,
		"Limit":               testLimit,
		"Has":                 testHas,
		"Property":            testProperty,
		"Obtainable":          testObtainable,
		"ObtainableProperty":  testObtainableProperty,
		"Race":                testRace,
	} {
		t.Run(name, func(t *testing.T) { test(t, newBackend(t)) })
		if name == "Ready" || name == "Has" || strings.HasPrefix(name, "Obtainable") {
			continue // what these ask is never remembered
		}
		t.Run(name+"Remembered", func(t *testing.T) { test(t, Remembered{newBackend(t)}) })
	}
}

// Exchange is the question of the tests: alice's agent planner hands calendar.read at one resource
// to researcher.
func Exchange() (policy.Question, []policy.Relation) {
	q := policy.Question{
		Edges:     []policy.Edge{{From: "user:alice", To: "agent:planner"}, {From: "agent:planner", To: "agent:researcher"}},
		Subject:   "user:alice",
		Actor:     "agent:researcher",
		Scopes:    delegation.Scopes{"calendar.read", "mail:send"},
		Audiences: []string{"https://calendar.example"},
	}
	return q, []policy.Relation{ // written out: this list is what the questions are compared with
		{User: "user:alice", Relation: "delegator", Object: "agent:planner"},
		{User: "agent:planner", Relation: "delegator", Object: "agent:researcher"},
		{User: "user:alice", Relation: "holder", Object: "scope:calendar.read"},
		{User: "agent:researcher", Relation: "holder", Object: "scope:calendar.read"},
		{User: "user:alice", Relation: "holder", Object: "scope:mail%3Asend"},
		{User: "agent:researcher", Relation: "holder", Object: "scope:mail%3Asend"},
		{User: "user:alice", Relation: "accessor", Object: "resource:https%3A//calendar.example"},
		{User: "agent:researcher", Relation: "accessor", Object: "resource:https%3A//calendar.example"},
	}
}

func testReady(t *testing.T, b Backend) {
	if err := NewChecker(t, b).Ready(t.Context()); err != nil {
		t.Error(err)
	}
	store, model := b.IDs()
	// Negative controls: what is not there is noticed.
	for name, config := range map[string]policy.Config{
		"store":    {StoreID: "01BX5ZZKBKACTAV9WEVGEMMVS0", ModelID: model},
		"model":    {StoreID: store, ModelID: "01BX5ZZKBKACTAV9WEVGEMMVS0"},
		"relation": {StoreID: store, ModelID: model, Mapping: policy.Mapping{Scope: policy.ObjectRule{Relation: "owner"}}},
		"type":     {StoreID: store, ModelID: model, Mapping: policy.Mapping{Resource: policy.ObjectRule{Type: "api"}}},
		"delegator": {StoreID: store, ModelID: model, Mapping: policy.Mapping{
			Delegator: policy.EdgeRule{Relation: "truster"}}},
		"principal": {StoreID: store, ModelID: model, Principals: []string{"agent", "robot"}},
	} {
		config.URL, config.Transport = "http://openfga.test", b
		c, err := policy.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(t.Context()); err == nil {
			t.Errorf("ready although the %s is not there", name)
		}
	}
	there, err := policy.New(policy.Config{
		URL: "http://openfga.test", Transport: b, StoreID: store, ModelID: model, Principals: []string{"agent", "user"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := there.Ready(t.Context()); err != nil {
		t.Errorf("not ready although the types of principals are there: %v", err)
	}
}

// A question is allowed with all of its relations, and with any one of them gone refused with its
// name. That no fewer relations allow it is the negative control of each check.
func testEveryRelationCounts(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	q, needed := Exchange()
	everyRelationCounts(t, b, c, q, needed)
}

func everyRelationCounts(t *testing.T, b Backend, c *policy.Checker, q policy.Question, needed []policy.Relation) {
	t.Helper()
	write(t, b, needed...)
	_, model := b.IDs()
	want := policy.Decision{Allowed: true, ModelID: model, Checks: len(needed)}
	if d, err := c.Ask(t.Context(), q); err != nil || d != want {
		t.Fatalf("with everything there: %+v, %v; want %+v", d, err, want)
	}
	for _, r := range needed {
		remove(t, b, r)
		d, err := c.Ask(t.Context(), q)
		if err != nil || d.Allowed || d.Missing == nil || d.Missing.Relation != r {
			t.Errorf("without %s: %+v, %v", r, d, err)
		}
		write(t, b, r)
	}
	// Of several missing relations the first in the question's order is named.
	for i := range needed {
		remove(t, b, needed[len(needed)-1-i])
		d, err := c.Ask(t.Context(), q)
		if first := needed[len(needed)-1-i]; err != nil || d.Missing == nil || d.Missing.Relation != first {
			t.Errorf("without the last %d: %+v, %v; want %s", i+1, d, err, first)
		}
	}
}

// With several audiences every scope is asked at every audience.
func testPairsCount(t *testing.T, b Backend) {
	q := policy.Question{
		Edges:   []policy.Edge{{From: "user:alice", To: "agent:planner"}},
		Subject: "user:alice", Actor: "agent:planner",
		Scopes:    delegation.Scopes{"a|b"},
		Audiences: []string{"urn:x", "urn:y"},
	}
	needed := []policy.Relation{{User: "user:alice", Relation: "delegator", Object: "agent:planner"}}
	for _, object := range []string{"scope:a%7Cb", "scope:a%7Cb|urn%3Ax", "scope:a%7Cb|urn%3Ay"} {
		for _, user := range []string{"user:alice", "agent:planner"} {
			needed = append(needed, policy.Relation{User: user, Relation: "holder", Object: object})
		}
	}
	for _, object := range []string{"resource:urn%3Ax", "resource:urn%3Ay"} {
		for _, user := range []string{"user:alice", "agent:planner"} {
			needed = append(needed, policy.Relation{User: user, Relation: "accessor", Object: object})
		}
	}
	everyRelationCounts(t, b, NewChecker(t, b), q, needed)
}

// A scope or an audience that looks like a wildcard, a userset or a list is a plain name.
func testNamesAreNotPatterns(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	write(t, b,
		policy.Relation{User: "user:alice", Relation: "delegator", Object: "agent:planner"},
		policy.Relation{User: "user:alice", Relation: "holder", Object: "scope:calendar.read"},
		policy.Relation{User: "agent:planner", Relation: "holder", Object: "scope:calendar.read"},
		policy.Relation{User: "user:alice", Relation: "accessor", Object: "resource:calendar"},
		policy.Relation{User: "agent:planner", Relation: "accessor", Object: "resource:calendar"},
	)
	question := func(scope, audience string) policy.Question {
		return policy.Question{Edges: []policy.Edge{{From: "user:alice", To: "agent:planner"}}, Subject: "user:alice", Actor: "agent:planner",
			Scopes: delegation.Scopes{scope}, Audiences: []string{audience}}
	}
	if d, err := c.Ask(t.Context(), question("calendar.read", "calendar")); err != nil || !d.Allowed {
		t.Fatalf("the plain name: %+v, %v", d, err)
	}
	for _, name := range []string{"*", "calendar.*", "calendar.read#holder", "calendar.read|calendar", "Calendar.read", "calendar.read/", "%63alendar.read", "scope:calendar.read"} {
		if d, err := c.Ask(t.Context(), question(name, "calendar")); err != nil || d.Allowed {
			t.Errorf("scope %q: %+v, %v", name, d, err)
		}
	}
	for _, name := range []string{"*", "calendar*", "calendar#accessor", "CALENDAR", "calendar ", "cal\u0435ndar", "resource:calendar", "\x00", "a\nb"} {
		if d, err := c.Ask(t.Context(), question("calendar.read", name)); err != nil || d.Allowed {
			t.Errorf("audience %q: %+v, %v", name, d, err)
		}
	}
}

// What OpenFGA acknowledged before a question counts in it (I11).
func testFreshness(t *testing.T, b Backend) {
	if stale := StaleAnswers(t, b, b, 100); stale != 0 {
		t.Errorf("%d of 200 answers did not reflect the write before them", stale)
	}
}

// StaleAnswers deletes and restores one relation rounds times, asks through transport immediately
// after each acknowledged write, and counts the answers that do not reflect it.
func StaleAnswers(t *testing.T, b Backend, transport http.RoundTripper, rounds int) int {
	t.Helper()
	store, model := b.IDs()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: store, ModelID: model, Transport: transport, Cache: cacheOf(b), Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	return StaleAnswersOf(t, b, c, rounds)
}

// StaleAnswersOf is StaleAnswers for a checker that is there.
func StaleAnswersOf(t *testing.T, b Backend, c *policy.Checker, rounds int) int {
	t.Helper()
	q, needed := Exchange()
	write(t, b, needed...)
	stale := 0
	expect := func(allowed bool) {
		d, err := c.Ask(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if d.Allowed != allowed {
			stale++
		}
	}
	for i := range rounds {
		r := needed[i%len(needed)]
		remove(t, b, r)
		expect(false)
		write(t, b, r)
		expect(true)
	}
	return stale
}

// One question's refusal touches no other, and shared relations are asked once.
func testManyQuestions(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	var questions []policy.Question
	for i := range 100 {
		q, needed := Exchange()
		child := delegation.Principal(fmt.Sprintf("agent:child-%d", i))
		q.Edges = append(q.Edges, policy.Edge{From: q.Actor, To: child})
		q.Actor = child
		questions = append(questions, q)
		if i%10 == 3 {
			continue // this child holds nothing
		}
		write(t, b, policy.Relation{User: "agent:researcher", Relation: "delegator", Object: string(child)})
		for _, r := range needed {
			if r.User == "agent:researcher" {
				r.User = string(child)
			}
			write(t, b, r)
		}
	}
	questions[5].Audiences = nil
	questions[6].Subject = "no-type"
	for i, answer := range c.AskAll(t.Context(), questions) {
		reason := delegation.Reason("")
		if answer.Err != nil {
			reason = delegation.AsError(answer.Err).Reason
		}
		switch {
		case i == 5 && reason == delegation.AudienceMissing, i == 6 && reason == delegation.Internal:
		case i == 5, i == 6:
			t.Errorf("question %d: %+v", i, answer)
		case answer.Err != nil || answer.Decision.Allowed == (i%10 == 3):
			t.Errorf("question %d: %+v", i, answer)
		case !answer.Decision.Allowed && answer.Decision.Missing.Value != fmt.Sprintf("agent:child-%d", i):
			t.Errorf("question %d misses %+v", i, answer.Decision.Missing)
		}
	}
	if answers := c.AskAll(t.Context(), nil); len(answers) != 0 {
		t.Errorf("no question got %d answers", len(answers))
	}
}

// Exactly the limit is asked in one request; one more is refused, never split.
func testLimit(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	question := func(scopes int) policy.Question {
		q := policy.Question{Subject: "agent:planner", Actor: "agent:planner", Audiences: []string{"calendar"}}
		for i := range scopes {
			q.Scopes = append(q.Scopes, fmt.Sprintf("s%02d", i))
		}
		return q
	}
	// Subject and actor are the same, so each scope and the audience are one check.
	if d, err := c.Ask(t.Context(), question(policy.DefaultMaxChecks-1)); err != nil || d.Checks != policy.DefaultMaxChecks {
		t.Errorf("at the limit: %+v, %v", d, err)
	}
	d, err := c.Ask(t.Context(), question(policy.DefaultMaxChecks))
	if e := delegation.AsError(err); e == nil || e.Reason != delegation.TooManyChecks || d != (policy.Decision{}) {
		t.Errorf("above the limit: %+v, %v", d, err)
	}
}

func testHas(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	auditor := policy.Relation{User: "user:vera", Relation: "auditor", Object: "system:deputy"}
	if yes, err := c.Has(t.Context(), auditor); yes || err != nil {
		t.Errorf("before the write: %v, %v", yes, err)
	}
	write(t, b, auditor)
	if yes, err := c.Has(t.Context(), auditor); !yes || err != nil {
		t.Errorf("after the write: %v, %v", yes, err)
	}
	for _, r := range []policy.Relation{
		{}, {User: "user:*", Relation: "auditor", Object: "system:deputy"}, {User: "group:x#member", Relation: "auditor", Object: "system:deputy"},
		{User: "user:vera", Relation: "auditor", Object: "system:"}, {User: "user:vera", Relation: "", Object: "system:deputy"},
		{User: "vera", Relation: "auditor", Object: "system:deputy"}, {User: "user:vera", Relation: "auditor", Object: "system:" + strings.Repeat("x", 256)},
	} {
		if yes, err := c.Has(t.Context(), r); yes || err == nil {
			t.Errorf("%q: %v, %v", r, yes, err)
		}
	}
}

// Sample is a world of relationships and a question about it.
type Sample struct {
	Question policy.Question
	Needed   []policy.Relation // what the question needs, in the order in which it is reported
	World    []policy.Relation
}

// Samples generates chains of up to eight actors with worlds in which often one relation is missing
// and others, which do not matter, are there.
func Samples() *rapid.Generator[Sample] {
	return rapid.Custom(func(t *rapid.T) Sample {
		var s Sample
		q := &s.Question
		q.Subject = rapid.SampledFrom([]delegation.Principal{"user:alice", "user:bob%3A", "agent:cron", "service:ci"}).Draw(t, "subject")
		q.Actor = q.Subject
		for i := range rapid.IntRange(0, 8).Draw(t, "edges") {
			next := delegation.Principal(fmt.Sprintf("agent:a%d", i))
			q.Edges = append(q.Edges, policy.Edge{From: q.Actor, To: next})
			q.Actor = next
		}
		names := []string{"calendar.read", "mail:send", "*", "a|b", "https://x.example/?q=1"}
		q.Scopes = rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 3, rapid.ID[string]).Draw(t, "scopes")
		slices.Sort(q.Scopes)
		q.Audiences = rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 2, rapid.ID[string]).Draw(t, "audiences")
		s.Needed = needed(*q)
		gone := -1
		if rapid.Bool().Draw(t, "refused") {
			gone = rapid.IntRange(0, len(s.Needed)-1).Draw(t, "gone")
		}
		for i, r := range s.Needed {
			if i != gone {
				s.World = append(s.World, r)
			}
		}
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "others") {
			s.World = append(s.World,
				policy.Relation{User: "user:other", Relation: "holder", Object: "scope:" + delegation.EncodeID(name)},
				policy.Relation{User: "user:other", Relation: "accessor", Object: "resource:" + delegation.EncodeID(name)},
				policy.Relation{User: "agent:other", Relation: "delegator", Object: "agent:a0"},
			)
		}
		return s
	})
}

// needed is what an exchange must ask, written a second time and as plainly as possible.
func needed(q policy.Question) []policy.Relation {
	var all []policy.Relation
	for _, e := range q.Edges {
		all = append(all, policy.Relation{User: string(e.From), Relation: "delegator", Object: string(e.To)})
	}
	both := func(relation, object string) {
		for _, p := range []delegation.Principal{q.Subject, q.Actor} {
			all = append(all, policy.Relation{User: string(p), Relation: relation, Object: object})
		}
	}
	for _, scope := range q.Scopes {
		both("holder", "scope:"+delegation.EncodeID(scope))
		for _, audience := range q.Audiences {
			if len(q.Audiences) > 1 {
				both("holder", "scope:"+delegation.EncodeID(scope)+"|"+delegation.EncodeID(audience))
			}
		}
	}
	for _, audience := range q.Audiences {
		both("accessor", "resource:"+delegation.EncodeID(audience))
	}
	return distinct(all)
}

// Divergence asks the sample's question and returns how the answer differs from what its world
// allows; "" if it does not.
func (s Sample) Divergence(ctx context.Context, c *policy.Checker) string {
	d, err := c.Ask(ctx, s.Question)
	if err != nil {
		return err.Error()
	}
	var first *policy.Relation
	for _, r := range s.Needed {
		if !slices.Contains(s.World, r) {
			first = &r
			break
		}
	}
	switch {
	case d.Allowed != (first == nil):
		return fmt.Sprintf("allowed is %v, the first relation that is not there is %v", d.Allowed, first)
	case d.Checks != len(s.Needed):
		return fmt.Sprintf("%d checks instead of %d", d.Checks, len(s.Needed))
	case first != nil && (d.Missing == nil || d.Missing.Relation != *first):
		return fmt.Sprintf("names %+v instead of %v", d.Missing, first)
	}
	return ""
}

func testProperty(t *testing.T, b Backend) {
	c := NewChecker(t, b)
	rapid.Check(t, func(rt *rapid.T) {
		s := Samples().Draw(rt, "sample")
		world := distinct(s.World)
		write(t, b, world...)
		defer remove(t, b, world...)
		if d := s.Divergence(t.Context(), c); d != "" {
			rt.Fatal(d)
		}
	})
}

func distinct(relations []policy.Relation) []policy.Relation {
	var once []policy.Relation
	for _, r := range relations {
		if !slices.Contains(once, r) {
			once = append(once, r)
		}
	}
	return once
}

func write(t testing.TB, b Backend, relations ...policy.Relation) {
	t.Helper()
	if err := b.Write(t.Context(), relations...); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, b Backend, relations ...policy.Relation) {
	t.Helper()
	if err := b.Delete(t.Context(), relations...); err != nil {
		t.Fatal(err)
	}
}
