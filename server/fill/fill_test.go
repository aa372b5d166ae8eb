package fill_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/fill"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testservers.Main(m)) }

var until = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func database(t *testing.T, kind string) (dsn string) {
	t.Helper()
	if kind == "postgres" {
		return ledgertest.Postgres(t)
	}
	return ledgertest.SQLite(t)
}

func filled(t *testing.T, kind string, seed uint64) (*ledger.Ledger, fill.Summary, string) {
	t.Helper()
	dsn := database(t, kind)
	summary, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: "acme", Entries: 6000, Seed: seed, Until: until})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), dsn, ledger.Config{Now: func() time.Time { return until }, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, summary, dsn
}

// entries reads everything.
func entries(t *testing.T, l *ledger.Ledger) (all []*ledger.Entry) {
	t.Helper()
	for after := uint64(0); ; after = all[len(all)-1].Seq {
		page, err := l.Entries(t.Context(), "acme", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
	}
}

func TestFillsAsItSays(t *testing.T) {
	l, summary, dsn := filled(t, "sqlite", 1)
	if err := ledgertest.Check(t.Context(), l, "acme"); err != nil {
		t.Error(err)
	}
	all := entries(t, l)
	if len(all) != 6000 || summary.Entries != 6000 {
		t.Errorf("%d entries, the summary says %d", len(all), summary.Entries)
	}
	kinds, live, revoked := map[string]int{}, 0, 0
	below, chain := map[string]bool{}, map[string]int{}
	subjects, actors, targets := map[delegation.Principal]int{}, map[delegation.Principal]int{}, map[delegation.TargetKind]bool{}
	for _, e := range all {
		kinds[string(e.Kind)]++
		subjects[e.Subject]++
		actors[e.Actor]++
		switch {
		case e.Revocation != nil:
			targets[e.Revocation.Target.Kind] = true
		case e.Kind == ledger.KindGrant:
			chain[e.ID] = chain[e.Parent] + 1
			if e.Parent == summary.Tree || below[e.Parent] {
				below[e.ID] = true
			}
			if e.Expiry.After(until) {
				live++
			}
		case e.Reason == delegation.TokenRevoked:
			revoked++
		}
	}
	if !maps.Equal(kinds, summary.Kinds) {
		t.Errorf("kinds are %v, the summary says %v", kinds, summary.Kinds)
	}
	for _, kind := range []string{"grant", "refusal", "check", "void", "revocation"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s", kind)
		}
	}
	if len(targets) < 4 || revoked == 0 {
		t.Errorf("%d kinds of targets, %d refusals by revocations", len(targets), revoked)
	}
	if len(below) != 1000 || summary.Below != 1000 {
		t.Errorf("%d grants below the tree's root, the summary says %d", len(below), summary.Below)
	}
	if chain[summary.Deep] != 6 || summary.Depth != 6 {
		t.Errorf("the deep chain has %d hops, the summary says %d", chain[summary.Deep], summary.Depth)
	}
	if hops, err := l.Chain(t.Context(), "acme", summary.Deep); err != nil || len(hops) != 6 {
		t.Errorf("the deep chain has %d entries, %v", len(hops), err)
	}
	if subjects[summary.Subject] < 100 || actors[summary.Actor] < 100 {
		t.Errorf("%s has %d entries and %s %d", summary.Subject, subjects[summary.Subject], summary.Actor, actors[summary.Actor])
	}
	first, last := all[0].Time, all[len(all)-1].Time
	if first.After(until.AddDate(0, 0, -10)) || until.Sub(last) > time.Minute || last.After(until) || live < 100 || live > 5000 {
		t.Errorf("from %s to %s with %d alive at the end", first, last, live)
	}
	if _, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: "acme", Entries: 10}); err == nil || !strings.Contains(err.Error(), "has entries already") {
		t.Errorf("a second fill: %v", err)
	}
	if _, err := fill.Run(t.Context(), dsn, fill.Options{Tenant: "acme"}); err == nil {
		t.Error("no number of entries, and no error")
	}
}

// TestSameSeedSameLedger compares leaves, which every field of an entry and every salt goes into.
func TestSameSeedSameLedger(t *testing.T) {
	here, _, _ := filled(t, "sqlite", 7)
	there, _, _ := filled(t, "postgres", 7)
	other, _, _ := filled(t, "sqlite", 8)
	a, b, c := entries(t, here), entries(t, there), entries(t, other)
	if len(a) != len(b) {
		t.Fatalf("%d and %d entries", len(a), len(b))
	}
	for i := range a {
		if a[i].Leaf != b[i].Leaf {
			t.Fatalf("entry %d differs between two ledgers of the same seed", i+1)
		}
	}
	if a[0].Leaf == c[0].Leaf {
		t.Error("another seed gives the same ledger")
	}
}

// TestNoticesOtherWriters has another program append: the predictions of fill fail then.
func TestNoticesOtherWriters(t *testing.T) {
	dsn := database(t, "sqlite")
	l, err := ledger.Open(t.Context(), dsn, ledger.Config{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	otherWriter := func(int) {
		if _, err := l.Append(t.Context(), "acme", ledgertest.Grant(time.Now(), "user:alice", "agent:planner")); err != nil {
			t.Error(err)
		}
	}
	_, err = fill.Run(t.Context(), dsn, fill.Options{Tenant: "acme", Entries: 3000, Progress: otherWriter})
	if err == nil || !strings.Contains(err.Error(), "another program writes") {
		t.Errorf("another program wrote, and fill returned %v", err)
	}
}
