package ledger_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// annals is one history of a tenant on two instances, with the expected result beside it.
type annals struct {
	testing.TB
	*ledgertest.Clock
	*rand.Rand
	dsn       string
	instances []*ledger.Ledger // the first is asked for lists all the time, and so goes on from list to list
	grants    []toldGrant
	revoked   *delegation.RevocationSet
	lists     map[uint64]*ledger.Statuses
	suspended []string
	wrong     []string

	alive, dead int // how often a live grant was found so
}

type toldGrant struct {
	seq    uint64
	claims []byte
	expiry time.Time
	voided bool
}

func newAnnals(t testing.TB, dsn string, rnd *rand.Rand) *annals {
	p := &annals{TB: t, Clock: ledgertest.NewClock(), Rand: rnd, dsn: dsn, revoked: delegation.NewRevocationSet(0), lists: map[uint64]*ledger.Statuses{}}
	for range 2 {
		p.instances = append(p.instances, p.open())
	}
	p.grant(ledgertest.Grant(p.Now(), "user:alice", "agent:a"))
	// Near the end of the first list, so that the history goes on in the second.
	moveHead(t, dsn, ledger.StatusListSize-40)
	return p
}

// moveHead has the log begin at a high number: its tree has arbitrary hashes.
func moveHead(t testing.TB, dsn string, seq uint64) {
	t.Helper()
	edge := `x'%s'`
	if strings.HasPrefix(dsn, "postgres") {
		edge = `'\x%s'::bytea`
	}
	hashes := strings.Repeat("00", bits.OnesCount64(seq)*sha256.Size)
	execute(t, dsn, fmt.Sprintf(`UPDATE heads SET seq = %d, tree_size = %d, tree = `+edge, seq, seq, hashes))
}

func (p *annals) open() *ledger.Ledger {
	return opened(p, p.dsn, ledger.Config{Timeout: patient.Timeout, Now: p.Now})
}

func (p *annals) instance() *ledger.Ledger { return p.instances[p.IntN(len(p.instances))] }

func (p *annals) grant(d *ledger.Draft) {
	d.Expiry = p.Now().Add(time.Duration(1+p.IntN(300)) * time.Second)
	if p.IntN(3) == 0 {
		d.HolderKey = fmt.Sprintf("key-%d", p.IntN(20))
	}
	r, err := p.instance().Append(p.Context(), tenant, d)
	switch {
	case err == nil:
		p.grants = append(p.grants, toldGrant{seq: r.Seq, claims: r.Claims, expiry: d.Expiry})
	case reason(err) != delegation.TokenRevoked:
		p.Fatal(err)
	}
}

func (p *annals) agent() delegation.Principal {
	return delegation.Principal(fmt.Sprintf("agent:%c", 'a'+rune(p.IntN(12))))
}

func (p *annals) subject() delegation.Principal {
	return []delegation.Principal{"user:alice", "user:bob", "agent:a"}[p.IntN(3)]
}

// step is one thing that happens.
func (p *annals) step() {
	some := &p.grants[p.IntN(len(p.grants))]
	claims := ledgertest.Decode(some.claims)
	switch n := p.IntN(20); {
	case n < 8:
		p.grant(ledgertest.Grant(p.Now(), p.subject(), p.agent()))
	case n < 15:
		if len(claims.Delegation.Hops) < 6 && !some.voided {
			p.grant(ledgertest.Child(p.Now(), some.claims, p.agent()))
		}
	case n < 16:
		if !some.voided {
			some.voided = true
			if _, err := p.instance().Append(p.Context(), tenant, &ledger.Draft{Kind: ledger.KindVoid, Caller: "agent:a", Voids: some.seq}); err != nil {
				p.Fatal(err)
			}
		}
	case n < 17:
		p.Add(time.Duration(p.IntN(40)) * time.Second)
	default:
		p.revoke(claims)
	}
}

func (p *annals) revoke(c delegation.Claims) {
	hop := c.Delegation.Hops[p.IntN(len(c.Delegation.Hops))]
	targets := []delegation.Target{
		{Kind: delegation.BanToken, ID: hop.ID}, {Kind: delegation.BanChain, ID: c.Txn}, {Kind: delegation.BanRoot, ID: c.Delegation.Root},
		{Kind: delegation.BanToken, ID: "never seen"}, {Kind: delegation.CutAgentSubject, ID: string(p.agent()), Subject: p.subject()},
		{Kind: delegation.BanSuspend, ID: string(p.agent())},
	}
	if n := len(p.suspended); n > 0 {
		resume := delegation.Target{Kind: delegation.Resume, ID: p.suspended[p.IntN(n)]}
		targets = append(targets, resume, resume, resume)
	}
	if p.IntN(3) == 0 {
		targets = append(targets, delegation.Target{Kind: delegation.CutAgent, ID: string(p.agent())}, delegation.Target{Kind: delegation.CutSubject, ID: string(p.subject())})
	}
	if p.IntN(12) == 0 {
		targets = []delegation.Target{{Kind: delegation.CutTenant}, {Kind: delegation.BanKey, ID: fmt.Sprintf("key-%d", p.IntN(20))}}
	}
	d := ledgertest.Revocation("", "")
	d.Revocation.Target = targets[p.IntN(len(targets))]
	switch d.Revocation.Target.Kind {
	case delegation.BanSuspend:
		p.suspended = append(p.suspended, d.Revocation.Target.ID)
	case delegation.Resume:
		p.suspended = slices.DeleteFunc(p.suspended, func(agent string) bool { return agent == d.Revocation.Target.ID })
	case delegation.BanKey:
	default:
		d.Revocation.Until = p.Now().Add(10 * time.Minute) // nothing lives longer
	}
	l := p.instance()
	r, err := l.Append(p.Context(), tenant, d)
	if err != nil {
		p.Fatal(err)
	}
	entry, err := l.EntryAt(p.Context(), tenant, r.Seq)
	if err != nil {
		p.Fatal(err)
	}
	p.revoked.Apply(*entry.Revocation)
}

// compare asks an instance for all lists, and each live grant's bit for the truth.
func (p *annals) compare(what string, l *ledger.Ledger) {
	lists := map[uint64]*ledger.Statuses{}
	for number := range uint64(2) {
		list, err := l.Statuses(p.Context(), tenant, number, 0)
		if errors.Is(err, ledger.ErrNotFound) {
			continue // not begun, or ended: then no grant below may live
		}
		if err != nil {
			p.Fatal(err)
		}
		lists[number] = list
	}
	for _, g := range p.grants {
		if !p.Now().Before(g.expiry) {
			continue
		}
		_, dead := p.revoked.Hit(ledgertest.Decode(g.claims).Lineage())
		if dead {
			p.dead++
		} else {
			p.alive++
		}
		number, _ := ledger.StatusPlace(g.seq)
		if list := lists[number]; list == nil || list.Dead(g.seq) != (dead || g.voided) {
			p.wrong = append(p.wrong, fmt.Sprintf("%s: grant %d: list there %t, dead %t, voided %t", what, g.seq, list != nil, dead, g.voided))
		}
	}
	if l != p.instances[0] {
		return
	}
	for number, list := range lists {
		for i := range list.Bits {
			if old := p.lists[number]; old != nil && old.Bits[i]&^list.Bits[i] != 0 {
				p.wrong = append(p.wrong, fmt.Sprintf("%s: list %d: a bit near %d went back to 0", what, number, 8*i))
			}
		}
		p.lists[number] = list
	}
}

func (p *annals) live(steps int) {
	for i := range steps {
		p.step()
		if p.IntN(4) == 0 {
			p.compare("from list to list", p.instances[0])
		}
		if p.IntN(30) == 0 {
			p.instances[0].ForgetRecent(tenant)
		}
		if i == steps/2 || i == steps-1 {
			p.compare("from nothing", p.open())
		}
	}
}

// TestStatusesAreTheTruth compares the bit of every live grant with what the one function returns,
// all along random histories.
func TestStatusesAreTheTruth(t *testing.T) {
	seed := testservers.Seed(t)
	onBoth(t, func(t *testing.T, dsn string) {
		p := newAnnals(t, dsn, rand.New(rand.NewPCG(seed, 1)))
		p.live(testservers.Campaign(4000, 150))
		for _, wrong := range p.wrong {
			t.Error(wrong)
		}
		t.Logf("%d grants, found alive %d times and dead %d times", len(p.grants), p.alive, p.dead)
		if list, _ := ledger.StatusPlace(p.grants[len(p.grants)-1].seq); list != 1 || p.alive < 100 || p.dead < 100 {
			t.Errorf("the last grant is in list %d: the test has lost its meaning", list)
		}
	})
}

// TestStatusesAcrossAGap revokes between two lists, and has the memory lose the order of its
// revocations.
func TestStatusesAcrossAGap(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		grant, err := l.Append(t.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:a"))
		if err != nil {
			t.Fatal(err)
		}
		if list, err := l.Statuses(t.Context(), tenant, 0, 0); err != nil || list.Dead(grant.Seq) {
			t.Fatalf("the list of a live grant: %v", err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.CutSubject, "user:alice")); err != nil {
			t.Fatal(err)
		}
		l.ForgetRecent(tenant)
		if list, err := l.Statuses(t.Context(), tenant, 0, 0); err != nil || !list.Dead(grant.Seq) {
			t.Errorf("the list after a revocation that the memory cannot name any more: %v", err)
		}
	})
}

// TestStatusesAreShared has many ask at once for one list, while its computation is held up.
func TestStatusesAreShared(t *testing.T) {
	clock := ledgertest.NewClock()
	l := opened(t, databases["sqlite"](t), ledger.Config{Timeout: patient.Timeout, Now: clock.Now})
	if _, err := l.Append(t.Context(), tenant, ledgertest.Grant(clock.Now(), "user:alice", "agent:a")); err != nil {
		t.Fatal(err)
	}
	ask := func() *ledger.Statuses {
		list, err := l.Statuses(t.Context(), tenant, 0, time.Second)
		if err != nil {
			t.Error(err)
		}
		return list
	}
	first := ask()
	var mu sync.Mutex
	seen := map[*ledger.Statuses]bool{}
	clock.Add(time.Second)
	concurrently(50, func(int) {
		list := ask()
		mu.Lock()
		seen[list] = true
		mu.Unlock()
	})
	if len(seen) != 1 || seen[first] {
		t.Errorf("%d lists for 50 who asked within one second; the old one among them: %t", len(seen), seen[first])
	}
	clock.Add(-time.Hour)
	if list := ask(); seen[list] {
		t.Error("a list from the future is taken for a young one")
	}
}

// TestStatusesSayWhenTheyCannot: no answer of the database is no list, and neither is a hurry.
func TestStatusesSayWhenTheyCannot(t *testing.T) {
	dsn := databases["sqlite"](t)
	l := opened(t, dsn, patient)
	grant, err := l.Append(t.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Statuses(t.Context(), tenant, 0, 0); err != nil {
		t.Fatal(err)
	}
	gone, goAway := context.WithCancel(t.Context())
	goAway()
	if list, err := l.Statuses(gone, tenant, 0, 0); reason(err) != delegation.DependencyDown {
		t.Errorf("to one who cannot wait: %v, %v", list, err)
	}
	execute(t, dsn, `UPDATE claims SET value = CAST(x'7b5c' || value AS BLOB)`) // hides what may be named in it
	if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.CutTenant, "")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if list, err := l.Statuses(t.Context(), tenant, 0, 0); reason(err) != delegation.DependencyDown {
			t.Errorf("with damaged claims: %v, %v", list, err)
		}
	}
	execute(t, dsn, `UPDATE claims SET value = CAST(substr(value, 3) AS BLOB)`)
	if list, err := l.Statuses(t.Context(), tenant, 0, 0); err != nil || !list.Dead(grant.Seq) {
		t.Errorf("when they are mended, the revoked grant is alive: %v", err)
	}
	execute(t, dsn, `DELETE FROM claims`)
	late := opened(t, dsn, patient)
	if list, err := late.Statuses(t.Context(), tenant, 0, 0); err != nil || !list.Dead(grant.Seq) {
		t.Errorf("a grant whose claims are gone is alive: %v", err)
	}
	moveHead(t, dsn, 0)
	if list, err := late.Statuses(t.Context(), tenant, 0, 0); reason(err) != delegation.DependencyDown {
		t.Errorf("after the ledger went back: %v, %v", list, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err := l.Statuses(t.Context(), tenant, 0, 0); reason(err) != delegation.DependencyDown {
		t.Errorf("after Close: %v, %v", list, err)
	}
}

// TestStatusListsAreBounded asks for more lists than are kept.
func TestStatusListsAreBounded(t *testing.T) {
	dsn := databases["sqlite"](t)
	l := opened(t, dsn, patient)
	for n := range uint64(ledger.MostStatusLists + 5) {
		if _, err := l.Append(t.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:a")); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Statuses(t.Context(), tenant, n, 0); err != nil {
			t.Fatal(err)
		}
		moveHead(t, dsn, (n+1)*ledger.StatusListSize)
	}
	if n := l.StatusLists(tenant); n != ledger.MostStatusLists {
		t.Errorf("%d lists are kept, want %d", n, ledger.MostStatusLists)
	}
	for n := range uint64(20) {
		if _, err := l.Statuses(t.Context(), tenant, 1_000_000+n, 0); !errors.Is(err, ledger.ErrNotFound) {
			t.Error(err)
		}
	}
	if n := l.StatusLists(tenant); n != ledger.MostStatusLists {
		t.Errorf("%d lists are kept after questions for what is not there, want %d", n, ledger.MostStatusLists)
	}
}

// TestEndedStatusListsAreGone: where nothing can be revoked any more, there is no list.
func TestEndedStatusListsAreGone(t *testing.T) {
	dsn, clock := databases["sqlite"](t), ledgertest.NewClock()
	config := ledger.Config{Timeout: patient.Timeout, Now: clock.Now}
	if _, err := opened(t, dsn, config).Append(t.Context(), tenant, ledgertest.Grant(clock.Now(), "user:alice", "agent:a")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		head uint64
		life time.Duration
		gone bool
	}{{ledger.StatusListSize, 0, false}, {ledger.StatusListSize - 1, ledgertest.Life, false}, {ledger.StatusListSize, 0, true}} {
		moveHead(t, dsn, c.head)
		clock.Add(c.life)
		if _, err := opened(t, dsn, config).Statuses(t.Context(), tenant, 0, 0); errors.Is(err, ledger.ErrNotFound) != c.gone {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// BenchmarkStatuses is what one list of 100,000 live grants costs: at first, with nothing new, and
// with one new revocation that hits one grant, or all of them.
func BenchmarkStatuses(b *testing.B) {
	const n = 100_000
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			dsn := databases[kind](b)
			l := opened(b, dsn, ledger.Config{Timeout: 30 * time.Second})
			var last sync.Map
			concurrently(64, func(i int) {
				for range n/64 + 1 {
					d := ledgertest.Grant(time.Now(), "user:alice", "agent:planner")
					d.Expiry = time.Now().Add(time.Hour)
					if _, err := l.Append(b.Context(), tenant, d); err != nil {
						b.Error(err)
					}
					last.Store("id", d.ID)
				}
			})
			id, _ := last.Load("id")
			list := func(b *testing.B, l *ledger.Ledger) {
				if _, err := l.Statuses(b.Context(), tenant, 0, 0); err != nil {
					b.Fatal(err, errors.Unwrap(err))
				}
			}
			revoke := func(b *testing.B, kind delegation.TargetKind, id string) {
				if _, err := l.Append(b.Context(), tenant, ledgertest.Revocation(kind, id)); err != nil {
					b.Fatal(err, errors.Unwrap(err))
				}
			}
			measure := func(name string, prepare func(*testing.B) *ledger.Ledger) {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						b.StopTimer()
						l := prepare(b)
						b.StartTimer()
						list(b, l)
					}
				})
			}
			measure("first", func(b *testing.B) *ledger.Ledger { return opened(b, dsn, patient) })
			list(b, l)
			measure("nothing new", func(*testing.B) *ledger.Ledger { return l })
			measure("one revoked", func(b *testing.B) *ledger.Ledger { revoke(b, delegation.BanToken, id.(string)); return l })
			measure("all revoked", func(b *testing.B) *ledger.Ledger { revoke(b, delegation.CutSubject, "user:alice"); return l })
		})
	}
}
