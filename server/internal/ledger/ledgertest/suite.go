package ledgertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Clock is a time that tests move.
type Clock struct{ now chan time.Time }

// NewClock starts at the present.
func NewClock() *Clock {
	c := &Clock{now: make(chan time.Time, 1)}
	c.now <- time.Now()
	return c
}

// Now fits ledger.Config.
func (c *Clock) Now() time.Time { return c.Add(0) }

// Add moves the clock, backwards too.
func (c *Clock) Add(d time.Duration) time.Time {
	now := (<-c.now).Add(d)
	c.now <- now
	return now
}

const tenant = "acme"

// bench is a database of a test's own, with the ledgers that are open on it.
type bench struct {
	testing.TB
	*Clock
	dsn string
}

// open opens one more instance on the same database.
func (b *bench) open() *ledger.Ledger {
	b.Helper()
	l, err := ledger.Open(b.Context(), b.dsn, ledger.Config{Now: b.Now, Timeout: 20 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	return l
}

// append records a draft that must succeed.
func (b *bench) append(l *ledger.Ledger, d *ledger.Draft, uses ...ledger.SingleUse) ledger.Receipt {
	b.Helper()
	r := l.AppendAll(b.Context(), tenant, []*ledger.Draft{d}, uses)[0]
	if r.Err != nil {
		b.Fatalf("%s %s: %v", d.Kind, d.ID, r.Err)
	}
	return r.Receipt
}

// refused records a draft that must come back with the reason, as an entry of its own.
func (b *bench) refused(l *ledger.Ledger, d *ledger.Draft, want delegation.Reason, uses ...ledger.SingleUse) ledger.Receipt {
	b.Helper()
	result := l.AppendAll(b.Context(), tenant, []*ledger.Draft{d}, uses)[0]
	r := result.Receipt
	if got := reason(result.Err); got != want {
		b.Fatalf("%s %s: reason %q (%v), want %q", d.Kind, d.ID, got, result.Err, want)
	}
	if r.Claims != nil || r.Existing {
		b.Fatal("a refusal came with a grant")
	}
	e, err := l.EntryAt(b.Context(), tenant, r.Seq)
	if err != nil || e.Kind != ledger.KindRefusal || e.Reason != want || e.Outcome != ledger.Refused || e.Claims != nil {
		b.Fatalf("the refusal is recorded as %+v, %v", e, err)
	}
	return r
}

func (b *bench) check(l *ledger.Ledger) {
	b.Helper()
	if err := Check(b.Context(), l, tenant); err != nil {
		b.Error(err)
	}
}

func reason(err error) delegation.Reason {
	if err == nil {
		return ""
	}
	return delegation.AsError(err).Reason
}

// use is a single use that ends in a minute.
func (b *bench) use(id string) ledger.SingleUse {
	return ledger.SingleUse{Issuer: "https://idp.example", Key: "k1", ID: id, Until: b.Now().Add(time.Minute)}
}

// keyed gives the draft an idempotency key for an hour.
func (b *bench) keyed(d *ledger.Draft, key string, fingerprint byte) *ledger.Draft {
	d.Idempotency = &ledger.Idempotency{Key: key, Fingerprint: [32]byte{fingerprint}, Until: b.Now().Add(time.Hour)}
	return d
}

// Suite is what both databases must pass. database makes an empty, migrated database.
func Suite(t *testing.T, database func(testing.TB) (dsn string)) {
	for name, test := range map[string]func(*bench){
		"records a chain":                         recordsChain,
		"stores every field":                      storesEveryField,
		"refuses malformed drafts":                refusesMalformed,
		"records refusals and checks":             recordsRefusals,
		"revokes by every target":                 revokesByEveryTarget,
		"sees another instance's revocation":      seesOtherInstances,
		"loads only live revocations":             loadsLiveRevocations,
		"allows single use once":                  singleUse,
		"prunes what ended, and nothing else":     prunes,
		"answers a retry with the stored grant":   idempotency,
		"refuses a retry after void":              voids,
		"keeps tenants apart":                     tenants,
		"keeps time in order":                     timeOrder,
		"reports not found":                       notFound,
		"survives claims that cannot be made":     badClaims,
		"withdraws what was cancelled in time":    cancelled,
		"refuses after Close":                     closed,
		"restarts where it stopped":               restarts,
		"gives a stale set only after a full one": coldSet,
		"feeds revocations in order":              feeds,
		"feeds no gap after a restart":            feedsNoGap,
		"counts what a revocation would revoke":   impact,
		"finds entries by every filter":           searches,
		"finds what was derived from a grant":     descendants,
		"returns what an agent holds":             holds,
		"lists the agents of its newest entries":  agents,
		"lists suspensions":                       suspensions,
		"grows a tree":                            growsTree,
		"keeps the newest checkpoint":             keepsCheckpoint,
		"keeps status lists":                      statuses,
		"keeps sealed keys":                       keepsKeys,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(&bench{TB: t, Clock: NewClock(), dsn: database(t)})
		})
	}
}

func recordsChain(b *bench) {
	l := b.open()
	root := Grant(b.Now(), "user:alice", "agent:planner")
	parent := b.append(l, root)
	child := Child(b.Now(), parent.Claims, "agent:researcher")
	leaf := b.append(l, child)
	sibling := Child(b.Now(), parent.Claims, "agent:writer")
	b.append(l, sibling)

	if parent.Seq != 1 || leaf.Seq != 2 {
		b.Errorf("numbers %d and %d, want 1 and 2", parent.Seq, leaf.Seq)
	}
	chain, err := l.Chain(b.Context(), tenant, child.ID)
	if err != nil || len(chain) != 2 || chain[0].ID != root.ID || chain[1].ID != child.ID {
		b.Fatalf("Chain = %v, %v", chain, err)
	}
	e, err := l.Entry(b.Context(), tenant, child.ID)
	if err != nil || string(e.Claims) != string(leaf.Claims) || !e.Time.Equal(leaf.Time) {
		b.Errorf("Entry = %+v, %v", e, err)
	}
	if !e.MatchesClaims(leaf.Claims) || e.MatchesClaims(parent.Claims) {
		b.Error("MatchesClaims does not distinguish the entry's claims from others")
	}
	b.check(l)
}

func storesEveryField(b *bench) {
	l := b.open()
	d := Grant(b.Now(), "user:alice", "agent:planner")
	d.HolderKey, d.Detail = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "a \"detail\" with <ünïcode>"
	d.Scopes = delegation.Scopes{"a.read", "b.write"}
	d.Audiences = []string{"https://one.example/?a=1&b=<2>", "urn:two"}
	details, err := delegation.ParseDetails([]byte(`[{"type":"doc","actions":["read"],"note":"<&>"},{"type":"other"}]`))
	if err != nil {
		b.Fatal(err)
	}
	d.Details = details
	r := b.append(l, d)
	e, err := l.EntryAt(b.Context(), tenant, r.Seq)
	if err != nil {
		b.Fatal(err)
	}
	got := fmt.Sprint(e.Kind, e.ID, e.Parent, e.Txn, e.Root, e.HolderKey, e.Outcome, e.Scopes, e.Audiences, e.Expiry.UnixMicro(), e.ModelID,
		e.TraceID, e.Subject, e.Actor, e.Caller, e.Actors, e.Peer, e.Detail, e.Details[0], e.Details[1], e.ActorProof, string(e.Claims))
	want := fmt.Sprint(d.Kind, d.ID, d.Parent, d.Txn, d.Root, d.HolderKey, ledger.Granted, d.Scopes, d.Audiences, d.Expiry.UnixMicro(), d.ModelID,
		d.TraceID, d.Subject, d.Actor, d.Caller, d.Actors, d.Peer, d.Detail, d.Details[0], d.Details[1], d.ActorProof, string(r.Claims))
	if got != want {
		b.Errorf("stored\n%s\nwant\n%s", got, want)
	}
	b.check(l)
}

func recordsRefusals(b *bench) {
	l := b.open()
	b.append(l, &ledger.Draft{Kind: ledger.KindRefusal, Caller: "agent:planner", Reason: delegation.ScopeNotPermitted,
		Detail: "bad bytes \x00\xff stay recordable", Peer: "192.0.2.1:1"})
	b.append(l, &ledger.Draft{Kind: ledger.KindCheck, Caller: "agent:planner", Outcome: ledger.Granted})
	page, err := l.Entries(b.Context(), tenant, 0, 10)
	if err != nil || len(page) != 2 || page[0].Outcome != ledger.Refused || page[1].Outcome != ledger.Granted {
		b.Fatalf("Entries = %v, %v", page, err)
	}
	b.check(l)
}

func refusesMalformed(b *bench) {
	l := b.open()
	good := func() *ledger.Draft { return Grant(b.Now(), "user:alice", "agent:planner") }
	for name, spoil := range map[string]func(*ledger.Draft){
		"unknown kind":             func(d *ledger.Draft) { d.Kind = "approval" },
		"no kind":                  func(d *ledger.Draft) { d.Kind = "" },
		"no caller":                func(d *ledger.Draft) { d.Caller = "" },
		"no root":                  func(d *ledger.Draft) { d.Root = "" },
		"no claims":                func(d *ledger.Draft) { d.Claims = nil },
		"refused grant":            func(d *ledger.Draft) { d.Outcome = ledger.Refused },
		"unknown reason":           func(d *ledger.Draft) { d.Reason = "because" },
		"hops without parent":      func(d *ledger.Draft) { d.Lineage.Hops = []delegation.Hop{{ID: "x", Seq: 1}} },
		"parent without hops":      func(d *ledger.Draft) { d.Parent = "x" },
		"actor not in chain":       func(d *ledger.Draft) { d.Actor = "agent:other" },
		"NUL":                      func(d *ledger.Draft) { d.Peer = "a\x00b" },
		"not UTF-8":                func(d *ledger.Draft) { d.TraceID = "\xff" },
		"too long":                 func(d *ledger.Draft) { d.Peer = string(make([]byte, 9000)) },
		"key without end":          func(d *ledger.Draft) { d.Idempotency = &ledger.Idempotency{Key: "k"} },
		"use without end":          func(d *ledger.Draft) { d.Uses = []ledger.SingleUse{{Issuer: "i", ID: "1"}} },
		"use without id":           func(d *ledger.Draft) { d.Uses = []ledger.SingleUse{{Issuer: "i", Until: b.Now()}} },
		"empty detail":             func(d *ledger.Draft) { d.Details = make([]delegation.Detail, 1) },
		"void without number":      func(d *ledger.Draft) { *d = ledger.Draft{Kind: ledger.KindVoid, Caller: "a:b"} },
		"void of what is not":      func(d *ledger.Draft) { *d = ledger.Draft{Kind: ledger.KindVoid, Caller: "a:b", Voids: 99} },
		"refusal without reason":   func(d *ledger.Draft) { *d = ledger.Draft{Kind: ledger.KindRefusal, Caller: "a:b"} },
		"check without outcome":    func(d *ledger.Draft) { *d = ledger.Draft{Kind: ledger.KindCheck, Caller: "a:b"} },
		"revocation of nothing":    func(d *ledger.Draft) { *d = *Revocation(delegation.BanToken, "") },
		"revocation of unknown":    func(d *ledger.Draft) { *d = *Revocation("moon", "x") },
		"suspension with an end":   func(d *ledger.Draft) { *d = *Revocation(delegation.BanSuspend, "a:b"); d.Revocation.Until = b.Now() },
		"tenant cut with a target": func(d *ledger.Draft) { *d = *Revocation(delegation.CutTenant, "x") },
	} {
		d := good()
		spoil(d)
		if r, err := l.Append(b.Context(), tenant, d); reason(err) != delegation.Internal || r.Seq != 0 {
			b.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if _, err := l.Append(b.Context(), "", good()); reason(err) != delegation.Internal {
		b.Errorf("no tenant: %v", err)
	}
	twice := good()
	b.append(l, twice)
	if r, err := l.Append(b.Context(), tenant, twice); reason(err) != delegation.Internal || r.Seq != 0 {
		b.Errorf("same jti again: %v, %v", r, err)
	}
	// What was written with it is not lost.
	both := l.AppendAll(b.Context(), tenant, []*ledger.Draft{twice, good()}, []ledger.SingleUse{b.use("once")})
	if reason(both[0].Err) != delegation.Internal || both[1].Err != nil {
		b.Errorf("same jti again, beside another: %v, %v", both[0].Err, both[1].Err)
	}
	if page, err := l.Entries(b.Context(), tenant, 0, 10); err != nil || len(page) != 2 {
		b.Errorf("%d entries, %v; want the good ones alone", len(page), err)
	}
	b.check(l)
}

func revokesByEveryTarget(b *bench) {
	const key = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	for _, kind := range []delegation.TargetKind{
		delegation.BanToken, delegation.BanChain, delegation.BanRoot, delegation.BanKey, delegation.BanSuspend, delegation.CutSubject,
		delegation.CutAgent, delegation.CutAgentSubject, delegation.CutTenant,
	} {
		l := b.open()
		suffix := delegation.Principal(rand.Text())
		alice, planner := "user:alice"+suffix, "agent:planner"+suffix
		root := Grant(b.Now(), alice, planner)
		root.HolderKey = key + string(suffix)
		parent := b.append(l, root)
		child := Child(b.Now(), parent.Claims, "agent:researcher")
		leaf := b.append(l, child)

		target := delegation.Target{Kind: kind, ID: map[delegation.TargetKind]string{
			delegation.BanToken: root.ID, delegation.BanChain: root.Txn, delegation.BanRoot: root.Root, delegation.BanKey: root.HolderKey,
			delegation.BanSuspend: string(planner), delegation.CutSubject: string(alice), delegation.CutAgent: string(planner),
			delegation.CutAgentSubject: string(planner),
		}[kind]}
		if kind == delegation.CutAgentSubject {
			target.Subject = alice
		}
		before, err := l.Revocations(b.Context(), tenant, true)
		if err != nil {
			b.Fatal(err)
		}
		prev := before.Last()
		d := Revocation(kind, target.ID)
		d.Revocation.Target = target
		r := b.append(l, d)
		e, err := l.EntryAt(b.Context(), tenant, r.Seq)
		if err != nil || e.Revocation.Target != target || e.Revocation.Prev != prev {
			b.Fatalf("%s: recorded %+v, %v; want prev %d", kind, e, err, prev)
		}
		b.refused(l, Child(b.Now(), leaf.Claims, "agent:tool"), delegation.TokenRevoked)
		b.refused(l, Child(b.Now(), parent.Claims, "agent:tool"), delegation.TokenRevoked)
		b.check(l)
	}
}

func seesOtherInstances(b *bench) {
	here, there := b.open(), b.open()
	parent := b.append(here, Grant(b.Now(), "user:alice", "agent:planner"))
	b.append(there, Revocation(delegation.BanChain, Decode(parent.Claims).Txn))
	b.refused(here, Child(b.Now(), parent.Claims, "agent:researcher"), delegation.TokenRevoked)

	r := b.append(there, Revocation(delegation.BanSuspend, "agent:writer"))
	set, err := here.Revocations(b.Context(), tenant, true)
	if err != nil || set.Last() != r.Seq {
		b.Fatalf("a fresh set ends with %d, want %d (%v)", set.Last(), r.Seq, err)
	}
	b.append(there, Revocation(delegation.Resume, "agent:writer"))
	b.append(here, Grant(b.Now(), "user:bob", "agent:writer"))
	b.check(here)
	b.check(there)
}

func loadsLiveRevocations(b *bench) {
	l := b.open()
	ends := Revocation(delegation.BanToken, "gone")
	ends.Revocation.Until = b.Now().Add(time.Minute)
	b.append(l, ends)
	b.append(l, Revocation(delegation.BanToken, "stays"))
	newest := Revocation(delegation.BanToken, "newest")
	newest.Revocation.Until = b.Now().Add(time.Minute)
	last := b.append(l, newest)
	b.Add(time.Hour)

	set, err := b.open().Revocations(b.Context(), tenant, false)
	if err != nil {
		b.Fatal(err)
	}
	hit := func(id string) bool {
		_, hit := set.Hit(delegation.Lineage{Root: "r", Hops: []delegation.Hop{{ID: id, Seq: 1}}, Actors: delegation.Chain{"a:b"}})
		return hit
	}
	if hit("gone") || !hit("stays") || set.Last() != last.Seq {
		b.Errorf("after a restart: gone %t, stays %t, last %d, want %d", hit("gone"), hit("stays"), set.Last(), last.Seq)
	}
	b.check(l)
}

func coldSet(b *bench) {
	b.append(b.open(), Revocation(delegation.BanChain, "t"))
	set, err := b.open().Revocations(b.Context(), tenant, false)
	if err != nil || set.Len() != 1 {
		b.Errorf("the first set of an instance has %d revocations, want 1 (%v)", set.Len(), err)
	}
}

func tenants(b *bench) {
	l := b.open()
	d := b.keyed(Grant(b.Now(), "user:alice", "agent:planner"), "k", 1)
	d.Uses = []ledger.SingleUse{b.use("1")}
	here := b.append(l, d)
	b.append(l, Revocation(delegation.CutTenant, ""))
	r, err := l.Append(b.Context(), "other", d)
	if err != nil || r.Seq != 1 || r.Existing {
		b.Errorf("in another tenant: %+v, %v", r, err)
	}
	for _, read := range []func() error{
		func() error { _, err := l.Entry(b.Context(), "third", d.ID); return err },
		func() error { _, err := l.EntryAt(b.Context(), "third", here.Seq); return err },
		func() error { _, err := l.Chain(b.Context(), "third", d.ID); return err },
		func() error { _, err := l.Lookup(b.Context(), "third", d.Caller, "k"); return err },
	} {
		if err := read(); !errors.Is(err, ledger.ErrNotFound) {
			b.Errorf("read across tenants: %v", err)
		}
	}
	set, err := l.Revocations(b.Context(), "other", true)
	if err != nil || set.Len() != 0 {
		b.Errorf("another tenant's revocations: %d, %v", set.Len(), err)
	}
	if err := Check(b.Context(), l, "other"); err != nil {
		b.Error(err)
	}
	b.check(l)
}

func timeOrder(b *bench) {
	l := b.open()
	first := b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	b.Add(-time.Minute)
	second := b.append(b.open(), Grant(b.Now(), "user:alice", "agent:planner"))
	if second.Time.Before(first.Time) {
		b.Errorf("time ran from %v back to %v", first.Time, second.Time)
	}
	b.check(l)
}

func notFound(b *bench) {
	l := b.open()
	b.append(l, Grant(b.Now(), "user:alice", "agent:planner"))
	for _, jti := range []string{"", "nobody", "' OR '1'='1"} {
		if _, err := l.Entry(b.Context(), tenant, jti); !errors.Is(err, ledger.ErrNotFound) {
			b.Errorf("Entry(%q): %v", jti, err)
		}
		if _, err := l.Chain(b.Context(), tenant, jti); !errors.Is(err, ledger.ErrNotFound) {
			b.Errorf("Chain(%q): %v", jti, err)
		}
	}
}

func badClaims(b *bench) {
	l := b.open()
	for name, claims := range map[string]func(uint64) ([]byte, error){
		"error": func(uint64) ([]byte, error) { return nil, errors.New("no") },
		"panic": func(uint64) ([]byte, error) { panic("no") },
		"none":  func(uint64) ([]byte, error) { return nil, nil },
		"huge":  func(uint64) ([]byte, error) { return make([]byte, 1<<20), nil },
	} {
		d := Grant(b.Now(), "user:alice", "agent:planner")
		d.Claims = claims
		if r, err := l.Append(b.Context(), tenant, d); reason(err) != delegation.Internal || r.Seq != 0 {
			b.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if r := b.append(l, Grant(b.Now(), "user:alice", "agent:planner")); r.Seq != 1 {
		b.Errorf("the failures took numbers: the first entry is %d", r.Seq)
	}
	b.check(l)
}

// cancelled holds the sequencer's turn in one draft's Claims, so that another is surely queued.
func cancelled(b *bench) {
	l := b.open()
	entered, leave := make(chan struct{}), make(chan struct{})
	slow := Grant(b.Now(), "user:alice", "agent:planner")
	claims := slow.Claims
	slow.Claims = func(seq uint64) ([]byte, error) { close(entered); <-leave; return claims(seq) }
	ctx, cancel := context.WithCancel(b.Context())
	result := make(chan error)
	go func() { _, err := l.Append(ctx, tenant, slow); result <- err }()
	<-entered
	queued := Grant(b.Now(), "user:alice", "agent:planner")
	gone, goAway := context.WithCancel(b.Context())
	goAway()
	if _, err := l.Append(gone, tenant, queued); reason(err) != delegation.DependencyDown {
		b.Errorf("a draft that was cancelled in the queue: %v", err)
	}
	cancel() // too late: its batch is running, and its outcome must be returned
	close(leave)
	if err := <-result; err != nil {
		b.Errorf("a draft that was cancelled in its batch: %v", err)
	}
	if _, err := l.Entry(b.Context(), tenant, queued.ID); !errors.Is(err, ledger.ErrNotFound) {
		b.Errorf("the withdrawn draft was recorded: %v", err)
	}
	b.check(l)
}

func closed(b *bench) {
	l, err := ledger.Open(b.Context(), b.dsn, ledger.Config{})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.Ready(b.Context()); err != nil {
		b.Error(err)
	}
	if err := l.Close(); err != nil {
		b.Error(err)
	}
	if _, err := l.Append(b.Context(), tenant, Grant(b.Now(), "user:alice", "agent:planner")); reason(err) != delegation.DependencyDown {
		b.Errorf("Append after Close: %v", err)
	}
	if _, err := l.Revocations(b.Context(), tenant, true); reason(err) != delegation.DependencyDown {
		b.Errorf("Revocations after Close: %v", err)
	}
	if err := l.Ready(b.Context()); reason(err) != delegation.DependencyDown {
		b.Errorf("Ready after Close: %v", err)
	}
}

func restarts(b *bench) {
	for n := uint64(1); n <= 3; n++ {
		l, err := ledger.Open(b.Context(), b.dsn, ledger.Config{Now: b.Now, Timeout: 20 * time.Second})
		if err != nil {
			b.Fatal(err)
		}
		if r := b.append(l, Grant(b.Now(), "user:alice", "agent:planner")); r.Seq != n {
			b.Errorf("number %d, want %d", r.Seq, n)
		}
		b.check(l)
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	}
}
