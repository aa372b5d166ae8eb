package ledger_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

const alice = delegation.Principal("user:alice")

// past is a ledger with a clock of its own.
type past struct {
	testing.TB
	*ledgertest.Clock
	dsn string
	*ledger.Ledger
}

func newPast(t testing.TB, dsn string, keep ledger.Retention) *past {
	p := &past{TB: t, Clock: ledgertest.NewClock(), dsn: dsn}
	p.Ledger = p.another(keep)
	return p
}

func (p *past) another(keep ledger.Retention) *ledger.Ledger {
	p.Helper()
	return opened(p, p.dsn, ledger.Config{
		Now: p.Now, Timeout: 20 * time.Second, Retention: map[string]ledger.Retention{tenant: keep},
	})
}

func (p *past) add(drafts ...*ledger.Draft) []ledger.Result {
	p.Helper()
	results := p.AppendAll(p.Context(), tenant, drafts, nil)
	for i, r := range results {
		if r.Err != nil {
			p.Fatalf("%s %d: %v", drafts[i].Kind, i, r.Err)
		}
	}
	return results
}

// refused is a refusal that describes its subject.
func (p *past) refused(subject, actor delegation.Principal) *ledger.Draft {
	return &ledger.Draft{
		Kind: ledger.KindRefusal, Reason: delegation.EdgeNotPermitted, Subject: subject, Actor: actor, Caller: actor,
		Actors: delegation.Chain{actor}, Detail: "missing: " + string(actor) + "#delegator@" + string(subject), Peer: "192.0.2.1:1",
	}
}

func (p *past) revoked(kind delegation.TargetKind, id delegation.Principal, life time.Duration) *ledger.Draft {
	d := ledgertest.Revocation(kind, string(id))
	d.Detail = "lost device of " + string(id)
	if life > 0 {
		d.Revocation.Until = p.Now().Add(life)
	}
	return d
}

func (p *past) all() (all []*ledger.Entry) {
	p.Helper()
	for after := uint64(0); ; after = all[len(all)-1].Seq {
		page, err := p.Entries(p.Context(), tenant, after, 1000)
		if err != nil {
			p.Fatal(err)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
	}
}

// mentions are the numbers of the entries that hold the name anywhere, in a field or in their
// claims.
func (p *past) mentions(name delegation.Principal) (seqs []uint64) {
	p.Helper()
	for _, e := range p.all() {
		r := e.Record()
		var said strings.Builder
		fmt.Fprint(&said, r.TargetID)
		for _, f := range r.Personal {
			said.WriteString(f.Value)
		}
		if strings.Contains(said.String(), string(name)) {
			seqs = append(seqs, e.Seq)
		}
	}
	return seqs
}

func (p *past) erase(want ledger.Erased) {
	p.Helper()
	if dry, err := p.Erase(p.Context(), tenant, ledger.Erasure{Principal: alice, DryRun: true}); err != nil || dry != want {
		p.Errorf("a dry run returns %+v, %v; want %+v", dry, err, want)
	}
	if done, err := p.Erase(p.Context(), tenant, ledger.Erasure{Principal: alice}); err != nil || done != want {
		p.Errorf("erased %+v, %v; want %+v", done, err, want)
	}
	checked(p, p.Ledger)
}

// found asks the search index.
func (p *past) found(subject delegation.Principal) int {
	p.Helper()
	page, before, err := p.Search(p.Context(), tenant, ledger.Query{Subject: subject, Limit: 1000})
	if err != nil || before != 0 {
		p.Fatal(before, err)
	}
	return len(page)
}

func TestErasesAPrincipal(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{})
		root := ledgertest.Grant(p.Now(), alice, "agent:planner")
		child := func(parent *ledger.Draft, receipt ledger.Receipt) *ledger.Draft {
			return ledgertest.Child(p.Now(), receipt.Claims, "agent:writer")
		}
		first := p.add(root)[0].Receipt
		p.add(child(root, first), p.refused(alice, "agent:planner"), p.refused("user:bob", "agent:planner"))
		p.add(&ledger.Draft{Kind: ledger.KindVoid, Caller: alice, Voids: first.Seq, Peer: "192.0.2.2:2"})
		p.add(p.revoked(delegation.CutSubject, alice, time.Minute), p.revoked(delegation.BanSuspend, alice, 0))
		p.add(&ledger.Draft{
			Kind: ledger.KindRevocation, Caller: "user:responder",
			Revocation: &delegation.Revocation{Until: p.Now().Add(time.Hour), Target: delegation.Target{
				Kind: delegation.CutAgentSubject, ID: "agent:writer", Subject: alice}},
		})
		before := p.all()
		proofs := p.proofs()

		// Everything is alive, but for refusals and the void; and details of revocations hit
		// nothing.
		end := before[0].Expiry.Add(30 * time.Second)
		p.erase(ledger.Erased{Entries: 4, Fields: 3 + 2 + 1 + 1, Deferred: 4, Kept: 1, Until: before[7].Revocation.Until.Add(30 * time.Second)})
		if _, err := p.another(ledger.Retention{}).Revocations(t.Context(), tenant, true); err != nil {
			t.Errorf("the revocations after an erasure: %v", err)
		}
		p.Add(end.Sub(p.Now()) + time.Second) // the grants have expired; the cut-offs hit root tokens too
		p.erase(ledger.Erased{Entries: 2, Fields: 4 + 4, Deferred: 2, Kept: 1, Until: before[7].Revocation.Until.Add(30 * time.Second)})
		p.Add(ledger.LongestRoot + time.Hour)
		p.erase(ledger.Erased{Entries: 2, Fields: 2, Kept: 1})
		p.erase(ledger.Erased{Kept: 1}) // again: nothing is left
		if got := p.mentions(alice); !slices.Equal(got, []uint64{7}) {
			t.Errorf("entries %d still mention the principal, want the suspension alone", got)
		}
		if got := p.mentions("user:bob"); len(got) != 1 {
			t.Errorf("another principal is mentioned by %d", got)
		}
		after := p.all()
		for i, e := range after {
			if e.Leaf != before[i].Leaf {
				t.Errorf("the leaf of entry %d has changed", e.Seq)
			}
		}
		p.hold(proofs)
		// The newest revocations have ended and lost what they aimed at, which must not break a
		// load.
		if live, _, err := p.another(ledger.Retention{}).Live(t.Context(), tenant); err != nil || len(live) == 0 {
			t.Errorf("the revocations of a new instance: %v, %v", live, err)
		}
		if _, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: "alice"}); err == nil {
			t.Error("what is no principal is erased")
		}
		if done, err := p.Erase(t.Context(), "other", ledger.Erasure{Principal: alice}); err != nil || done != (ledger.Erased{}) {
			t.Errorf("another tenant: %+v, %v", done, err)
		}
	})
}

// TestErasesWhatClaimsRepeat has the principal nowhere but in the claims of grants of others, which
// stay in the database after the grants have expired until newer grants push them out.
func TestErasesWhatClaimsRepeat(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{})
		details, err := delegation.ParseDetails([]byte(`[{"type":"mail","to":"user:alice"}]`))
		if err != nil {
			t.Fatal(err)
		}
		for _, say := range []func(*ledger.Draft, *delegation.Claims){
			func(_ *ledger.Draft, c *delegation.Claims) { c.MayAct = &delegation.MayAct{Sub: alice} },
			func(d *ledger.Draft, c *delegation.Claims) { d.Details, c.Details = details, details },
		} {
			d := ledgertest.Grant(p.Now(), "user:bob", "agent:planner")
			made := d.Claims
			claims := ledgertest.Decode(func() []byte { b, _ := made(1); return b }())
			say(d, &claims)
			d.Claims = func(seq uint64) ([]byte, error) {
				c := claims
				c.Delegation.Hops[0].Seq = seq
				return c.MarshalJSON()
			}
			p.add(d)
		}
		end := p.all()[0].Expiry.Add(30 * time.Second)
		p.erase(ledger.Erased{Deferred: 2, Until: end})
		p.Add(end.Sub(p.Now()) + time.Second)
		if got := p.mentions(alice); len(got) != 2 {
			t.Fatalf("%d mention the principal before it is erased, want both", got)
		}
		p.erase(ledger.Erased{Entries: 2, Fields: 1 + 2})
		if got := p.mentions(alice); len(got) != 0 {
			t.Errorf("entries %d still mention the principal", got)
		}
		p.erase(ledger.Erased{})
	})
}

// TestErasureEndsSessions looks for the principal among those who signed in to the console.
func TestErasureEndsSessions(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{})
		keys := map[delegation.Principal][32]byte{alice: {1}, "user:bob": {2}}
		for who, key := range keys {
			for _, in := range []string{tenant, "other"} {
				if err := p.StartSession(t.Context(), in, key, ledger.Session{Principal: who, Idle: time.Hour, Until: p.Now().Add(time.Hour)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		there := func(in string, who delegation.Principal) bool {
			_, err := p.Session(t.Context(), in, keys[who])
			return err == nil
		}
		if _, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: alice, DryRun: true}); err != nil || !there(tenant, alice) {
			t.Errorf("a dry run ends sessions: %v", err)
		}
		if _, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: alice}); err != nil {
			t.Fatal(err)
		}
		if there(tenant, alice) || !there(tenant, "user:bob") || !there("other", alice) {
			t.Error("an erasure ends the principal's sessions in this tenant, and no others")
		}
	})
}

// TestErasureMayBeEndedAnywhere fails each statement once. Whatever is left, a search never finds
// what the entries do not hold any more, and the next erasure does the rest.
func TestErasureMayBeEndedAnywhere(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		f, clock := &faults{}, ledgertest.NewClock()
		l := openedWith(t, dsn, ledger.Config{Now: clock.Now, Timeout: 20 * time.Second}, f.at)
		p := &past{TB: t, Clock: clock, dsn: dsn, Ledger: l}
		for _, point := range []string{
			"before update search_heads set version", "after delete from postings", "before update entries", "after update entries",
			"after delete from claims", "before update search_heads set block = block where", "after insert into postings",
		} {
			d := ledgertest.Grant(p.Now(), alice, "agent:planner")
			d.Expiry = p.Now().Add(time.Minute)
			drafts := []*ledger.Draft{d}
			for len(drafts) < 512 {
				drafts = append(drafts, p.refused("user:bob", "agent:planner"))
			}
			p.add(drafts...)
			p.index()
			if p.found(alice) != 1 {
				t.Fatalf("%s: the index does not know the grant", point)
			}
			p.Add(2 * time.Minute)
			f.set(once(point))
			_, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: alice})
			f.set(nil)
			if err == nil {
				t.Errorf("%s: no error", point)
			}
			if found, said := p.found(alice), len(p.mentions(alice)); found > said {
				t.Errorf("%s: %d entries are found by a name that %d have", point, found, said)
			}
			if _, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: alice}); err != nil {
				t.Errorf("%s: again: %v", point, err)
			}
			if found, said := p.found(alice), len(p.mentions(alice)); found+said > 0 {
				t.Errorf("%s: afterwards %d are found and %d hold it", point, found, said)
			}
		}
		checked(t, l)
	})
}

// index builds the search index as far as it goes.
func (p *past) index() { p.BuildIndex(p, tenant, 1000) }

// proofs are what an auditor holds: roots of many sizes, and for each the proof of some entry in
// it.
type proof struct {
	size uint64
	root tlog.Hash
	seq  uint64
	leaf tlog.Hash
}

func (p *past) proofs() (held []proof) {
	p.Helper()
	all := p.all()
	for i := 0; i < len(all); i += max(len(all)/23, 1) {
		size := uint64(i + 1)
		root, err := p.RootAt(p.Context(), tenant, size)
		if err != nil {
			p.Fatal(err)
		}
		seq := size/2 + 1
		held = append(held, proof{size, root, seq, all[seq-1].Leaf})
	}
	return held
}

// broken counts the proofs that do not hold any more, within the log as it is now.
func (p *past) broken(held []proof) (n int) {
	p.Helper()
	size, root, err := p.Tree(p.Context(), tenant)
	if err != nil {
		p.Fatal(err)
	}
	for _, h := range held {
		entry, err := p.ProveEntry(p.Context(), tenant, h.seq, size)
		if err == nil {
			err = tlog.CheckRecord(entry, int64(size), root, int64(h.seq-1), h.leaf)
		}
		growth, grew := p.ProveGrowth(p.Context(), tenant, h.size, size)
		if grew == nil {
			grew = tlog.CheckTree(growth, int64(size), root, int64(h.size), h.root)
		}
		then, read := p.RootAt(p.Context(), tenant, h.size)
		if err != nil || grew != nil || read != nil || then != h.root {
			n++
		}
	}
	return n
}

func (p *past) hold(held []proof) {
	p.Helper()
	if n := p.broken(held); n > 0 {
		p.Errorf("%d of %d proofs do not hold any more", n, len(held))
	}
}

// month has three blocks and a half of entries, with a revocation of each fate among the first.
func (p *past) month() {
	p.Helper()
	p.add(p.revoked(delegation.CutSubject, alice, time.Minute), p.revoked(delegation.BanSuspend, "agent:gone", 0), p.revoked(delegation.CutAgent, "agent:old", 90*24*time.Hour))
	for range 7 {
		var drafts []*ledger.Draft
		for i := range 256 {
			d := p.refused(delegation.Principal(fmt.Sprintf("user:u-%d", i)), "agent:planner")
			if i%2 == 0 {
				d = ledgertest.Grant(p.Now(), "user:bob", "agent:planner")
				d.Idempotency = &ledger.Idempotency{Key: d.ID, Until: d.Expiry}
			}
			drafts = append(drafts, d)
		}
		p.add(drafts...)
		p.Add(24 * time.Hour)
	}
}

func TestForgetsByAge(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{Personal: 5 * 24 * time.Hour})
		p.month()
		p.index()
		proofs := p.proofs()
		p.retain()
		// The first block has a revocation that is alive for months.
		if n := len(p.mentions("user:")); n != len(p.all()) {
			t.Errorf("%d entries of %d have their names, but the first block is alive", n, len(p.all()))
		}
		p.Add(90 * 24 * time.Hour)
		p.retain()
		all := p.all()
		for _, e := range all {
			switch old := e.Seq <= 3*512; {
			case e.Seq == 2: // the suspension never ends
				if e.Revocation.Target.ID != "agent:gone" || e.Caller != "" || e.Detail != "" {
					t.Errorf("of the suspension is left %+v", e)
				}
			case old != (e.Caller == ""), old && len(e.Record().Personal[0].Salt) > 0:
				t.Fatalf("entry %d: caller %q, erased %v", e.Seq, e.Caller, e.Erased())
			}
		}
		if found := p.found("user:u-1"); found != 1 {
			t.Errorf("a subject of each batch is found %d times, want once: in the part that is young", found)
		}
		checked(t, p.Ledger)
		p.hold(proofs)
		if _, err := p.another(ledger.Retention{}).Revocations(t.Context(), tenant, true); err != nil {
			t.Error(err)
		}
	})
}

func (p *past) retain() {
	p.Helper()
	if err := p.Retain(p.Context(), tenant); err != nil {
		p.Fatal(err)
	}
}

func TestDropsWhatIsOld(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		keep := ledger.Retention{Entries: 5 * 24 * time.Hour}
		p := newPast(t, dsn, keep)
		p.month()
		p.index()
		all, proofs := p.all(), p.proofs()
		if _, dropped, err := p.Dropped(t.Context(), tenant); dropped || err != nil {
			t.Error(dropped, err)
		}
		p.retain()
		if left := p.all(); len(left) != len(all) {
			t.Fatalf("%d entries are left while the first block is alive", len(left))
		}
		p.Add(90*24*time.Hour - 5*24*time.Hour)
		both(t, func() { p.retain() }, func() {
			if err := p.another(keep).Retain(t.Context(), tenant); err != nil {
				t.Error(err)
			}
		})
		left := p.all()
		dropped, there, err := p.Dropped(t.Context(), tenant)
		if err != nil || !there || dropped.Through != 3*512 || left[0].Seq != dropped.Through+1 || len(left) != len(all)-3*512 {
			t.Fatalf("%d entries from %d on are left; dropped: %+v %t %v", len(left), left[0].Seq, dropped.Through, there, err)
		}
		checked(t, p.Ledger)
		p.hold(proofs)
		if n := p.found("user:u-1"); n != 1 {
			t.Errorf("%d entries are found, want the one that is left", n)
		}
		page, _, err := p.Search(t.Context(), tenant, ledger.Query{From: all[0].Time, Limit: 1000})
		if err != nil || len(page) != len(left) {
			t.Errorf("a search from the beginning of time finds %d, %v", len(page), err)
		}
		// What never ends stays in force, for those who have never seen anything before; the newest
		// revocation is the third, which has ended and stays because it is the newest.
		fresh := &past{TB: t, Clock: p.Clock, dsn: dsn, Ledger: p.another(keep)}
		if _, err := fresh.Append(t.Context(), tenant, ledgertest.Grant(p.Now(), "user:bob", "agent:gone")); reason(err) != delegation.TokenRevoked {
			t.Errorf("a suspension that stayed behind: %v", err)
		}
		if e, err := p.EntryAt(t.Context(), tenant, 1); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("a revocation that has ended is there: %+v, %v", e, err)
		}
		for _, seq := range []uint64{2, 3} {
			if e, err := p.EntryAt(t.Context(), tenant, seq); err != nil || e.Verify() != nil {
				t.Errorf("revocation %d: %v", seq, err)
			}
		}
		p.add(p.revoked(delegation.CutSubject, "user:carol", time.Minute)) // a new newest one
		p.month()
		p.Add(91 * 24 * time.Hour)
		p.retain()
		if _, err := p.EntryAt(t.Context(), tenant, 3); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("it was left although it has ended and is not the newest any more: %v", err)
		}
		checked(t, p.Ledger)
		p.hold(proofs)
	})
}

// both runs two functions at the same time.
func both(t *testing.T, f, g func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); g() }()
	f()
	<-done
}

// TestAKeyOutlivesItsGrant retries, within the life of its key, a request whose grant was dropped.
func TestAKeyOutlivesItsGrant(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{Entries: 24 * time.Hour})
		draft := func() *ledger.Draft {
			d := ledgertest.Grant(p.Now(), "user:bob", "agent:planner")
			d.Idempotency = &ledger.Idempotency{Key: "order-7", Until: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)}
			return d
		}
		p.add(draft())
		p.month()
		p.Add(91 * 24 * time.Hour)
		p.retain()
		if _, err := p.EntryAt(t.Context(), tenant, 1); !errors.Is(err, ledger.ErrNotFound) {
			t.Fatalf("the grant was not dropped: %v", err)
		}
		other := ledgertest.Grant(p.Now(), "user:carol", "agent:planner")
		results := p.AppendAll(t.Context(), tenant, []*ledger.Draft{draft(), other}, nil)
		if reason(results[0].Err) != delegation.GrantGone || results[1].Err != nil {
			t.Errorf("a retry is answered with %v, the other draft with %v", results[0].Err, results[1].Err)
		}
		checked(t, p.Ledger)
	})
}

// TestNothingIsDroppedThatWasTamperedWith keeps the evidence.
func TestNothingIsDroppedThatWasTamperedWith(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		p := newPast(t, dsn, ledger.Retention{Entries: 24 * time.Hour})
		p.month()
		p.Add(91 * 24 * time.Hour)
		execute(t, dsn, `UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE seq = 600) WHERE seq = 700`)
		if err := p.Retain(t.Context(), tenant); err == nil {
			t.Error("what was tampered with is dropped without an error")
		}
		dropped, _, err := p.Dropped(t.Context(), tenant)
		if _, there := p.EntryAt(t.Context(), tenant, 700); err != nil || dropped.Through != 512 || there != nil {
			t.Errorf("dropped through %d, %v; the entry: %v", dropped.Through, err, there)
		}
	})
}

// TestEveryProofHolds is the property: whatever is recorded, erased, aged and dropped in whatever
// order, all that was signed can be proven, and what is left verifies.
func TestEveryProofHolds(t *testing.T) {
	rng := rand.New(rand.NewPCG(testservers.Seed(t), 0))
	for range testservers.Campaign(40, 2) {
		for _, database := range databases {
			p := newPast(t, database(t), ledger.Retention{Personal: 24 * time.Hour, Entries: 3 * 24 * time.Hour})
			var held []proof
			for day := range 5 {
				p.busyDay(rng)
				held = append(held, p.checkpoint())
				p.Add(time.Duration(1+rng.IntN(60)) * time.Hour)
				switch rng.IntN(3) {
				case 0:
					if _, err := p.Erase(p.Context(), tenant, ledger.Erasure{Principal: alice}); err != nil {
						t.Fatal(err)
					}
				case 1:
					p.index()
				}
				p.retain()
				checked(t, p.Ledger)
				if p.hold(held); t.Failed() {
					t.Fatalf("on day %d", day)
				}
			}
		}
	}
}

// busyDay records some hundred entries, a part of them on behalf of alice.
func (p *past) busyDay(rng *rand.Rand) {
	var drafts []*ledger.Draft
	for i := range 1 + rng.IntN(900) {
		d := p.refused(delegation.Principal(fmt.Sprintf("user:u-%d", i%7)), "agent:planner")
		if i%5 == 0 {
			d = ledgertest.Grant(p.Now(), alice, "agent:planner")
			d.Lineage.RootIssuedAt = p.Now().Add(time.Hour) // after any cut-off
		}
		drafts = append(drafts, d)
	}
	p.add(drafts...)
	if rng.IntN(2) == 0 {
		p.add(p.revoked(delegation.CutSubject, alice, time.Duration(1+rng.IntN(40))*time.Hour))
	}
}

// checkpoint is the log's head now, with the leaf of its newest entry.
func (p *past) checkpoint() proof {
	p.Helper()
	size, root, err := p.Tree(p.Context(), tenant)
	if err != nil {
		p.Fatal(err)
	}
	e, err := p.EntryAt(p.Context(), tenant, size)
	if err != nil {
		p.Fatal(err)
	}
	return proof{size, root, size, e.Leaf}
}

// TestErasedBytesAreGone looks into the file itself.
func TestErasedBytesAreGone(t *testing.T) {
	dsn := databases["sqlite"](t)
	p := newPast(t, dsn, ledger.Retention{})
	for range 20 {
		p.add(p.refused(alice, "agent:planner"), p.refused("user:bob", "agent:planner"))
	}
	held := func() int {
		execute(t, dsn, `PRAGMA wal_checkpoint(TRUNCATE)`)
		file, err := os.ReadFile(strings.TrimPrefix(dsn, "sqlite://"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(file, []byte(alice))
	}
	if n := held(); n < 40 {
		t.Fatalf("the name is in the file %d times before it is erased", n)
	}
	if _, err := p.Erase(t.Context(), tenant, ledger.Erasure{Principal: alice}); err != nil {
		t.Fatal(err)
	}
	if n := held(); n > 0 {
		t.Errorf("the name is in the file %d times after it was erased", n)
	}
}
