package ledger_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// instances opens n ledgers on one database.
func instances(t *testing.T, dsn string, n int) []*ledger.Ledger {
	t.Helper()
	list := make([]*ledger.Ledger, n)
	for i := range list {
		list[i] = opened(t, dsn, patient)
	}
	return list
}

// concurrently runs f n times at once.
func concurrently(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; f(i) })
	}
	close(start)
	wg.Wait()
}

// TestConcurrentInstances lets two instances do everything at once and goes over the result.
func TestConcurrentInstances(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		ls := instances(t, dsn, 2)
		var granted, refused atomic.Int64
		concurrently(16, func(i int) {
			l, rng := ls[i%2], rand.New(rand.NewPCG(uint64(i), 7))
			var parent []byte
			for n := range 30 {
				d := everything()
				d.Actor = delegation.Principal(fmt.Sprintf("agent:%d", rng.IntN(4)))
				d.Actors, d.Caller = delegation.Chain{d.Actor}, d.Actor
				if parent != nil && rng.IntN(3) > 0 {
					d = ledgertest.Child(time.Now(), parent, d.Actor)
				}
				if rng.IntN(10) == 0 {
					d = ledgertest.Revocation(delegation.CutAgent, fmt.Sprintf("agent:%d", rng.IntN(4)))
				}
				r, err := l.Append(t.Context(), tenant, d)
				switch {
				case err == nil && r.Claims != nil && len(ledgertest.Decode(r.Claims).Delegation.Hops) < 6:
					parent = r.Claims
					granted.Add(1)
				case reason(err) == delegation.TokenRevoked && r.Seq > 0:
					parent = nil
					refused.Add(1)
				case err != nil:
					t.Errorf("writer %d, draft %d: %v", i, n, err)
				}
			}
		})
		if granted.Load() < 50 || refused.Load() == 0 {
			t.Errorf("%d granted, %d refused: the test has lost its meaning", granted.Load(), refused.Load())
		}
		checked(t, ls[0])
	})
}

// gate holds an instance before its next transaction.
type gate struct {
	armed   atomic.Bool
	waiting chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{waiting: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) at(point string) error {
	if strings.HasPrefix(point, "before begin") && g.armed.CompareAndSwap(true, false) {
		close(g.waiting)
		<-g.open
	}
	return nil
}

// interleavings end with a revocation recorded and, perhaps, a child granted after it. Each returns
// what became of the child.
var interleavings = map[string]func(t *testing.T, dsn string) (*ledger.Ledger, error){
	"in the same batch": func(t *testing.T, dsn string) (*ledger.Ledger, error) {
		g := newGate()
		l := openedWith(t, dsn, patient, g.at)
		parent, err := l.Append(t.Context(), tenant, everything())
		if err != nil {
			t.Fatal(err)
		}
		g.armed.Store(true)
		results := make(chan error, 3)
		send := func(d *ledger.Draft, queued int) {
			go func() { _, err := l.Append(t.Context(), tenant, d); results <- err }()
			for l.Queued(tenant) < queued {
				runtime.Gosched()
			}
		}
		send(everything(), 0) // takes the turn
		<-g.waiting
		child := ledgertest.Child(time.Now(), parent.Claims, "agent:b")
		send(child, 1)
		send(ledgertest.Revocation(delegation.BanChain, child.Txn), 2)
		close(g.open)
		for range 3 {
			if err := <-results; err != nil && reason(err) != delegation.TokenRevoked {
				t.Error(err)
			}
		}
		e, err := l.Entry(t.Context(), tenant, child.ID)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == ledger.KindRefusal {
			return l, delegation.Refuse(e.Reason, "", "")
		}
		return l, nil
	},
	"by the other instance while the draft waits": func(t *testing.T, dsn string) (*ledger.Ledger, error) {
		g := newGate()
		l, other := openedWith(t, dsn, patient, g.at), opened(t, dsn, patient)
		parent, err := l.Append(t.Context(), tenant, everything())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Revocations(t.Context(), tenant, true); err != nil { // what the exchange saw was clean
			t.Fatal(err)
		}
		g.armed.Store(true)
		child := ledgertest.Child(time.Now(), parent.Claims, "agent:b")
		result := make(chan error)
		go func() { _, err := l.Append(t.Context(), tenant, child); result <- err }()
		<-g.waiting
		if _, err := other.Append(t.Context(), tenant, ledgertest.Revocation(delegation.CutSubject, "user:alice")); err != nil {
			t.Fatal(err)
		}
		close(g.open)
		return l, <-result
	},
	"just before": func(t *testing.T, dsn string) (*ledger.Ledger, error) {
		l := opened(t, dsn, patient)
		parent, err := l.Append(t.Context(), tenant, everything())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanSuspend, "agent:planner")); err != nil {
			t.Fatal(err)
		}
		_, err = l.Append(t.Context(), tenant, ledgertest.Child(time.Now(), parent.Claims, "agent:b"))
		return l, err
	},
}

func TestRevocationInterleavings(t *testing.T) {
	for kind, database := range databases {
		for name, interleave := range interleavings {
			t.Run(kind+" "+name, func(t *testing.T) {
				l, err := interleave(t, database(t))
				if reason(err) != delegation.TokenRevoked {
					t.Errorf("the child: %v, want token_revoked", err)
				}
				checked(t, l)
			})
		}
	}
}

// TestCheckFindsAGrantBehindItsRevocation is the negative control of the checker.
func TestCheckFindsAGrantBehindItsRevocation(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, patient)
		parent, err := l.Append(t.Context(), tenant, everything())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanSuspend, "agent:planner")); err != nil {
			t.Fatal(err)
		}
		checked(t, l)
		l.ForgetRevocations(tenant)
		if _, err := l.Append(t.Context(), tenant, ledgertest.Child(time.Now(), parent.Claims, "agent:b")); err != nil {
			t.Fatalf("the child: %v, although its revocation is forgotten", err)
		}
		if ledgertest.Check(t.Context(), l, tenant) == nil {
			t.Error("the checker does not see a grant behind its revocation")
		}
	})
}

// raceForOneUse has 100 drafts on two instances use the same assertion, and counts who succeeded.
func raceForOneUse(t *testing.T, ls []*ledger.Ledger) int64 {
	use := everything().Uses
	var won atomic.Int64
	concurrently(100, func(i int) {
		d := ledgertest.Grant(time.Now(), "user:alice", "agent:planner")
		d.Uses = use
		r, err := ls[i%2].Append(t.Context(), tenant, d)
		switch {
		case err == nil:
			won.Add(1)
		case reason(err) != delegation.AssertionReplayed || r.Seq == 0:
			t.Error(err)
		}
	})
	checked(t, ls[0])
	return won.Load()
}

func TestSingleUseRace(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		if won := raceForOneUse(t, instances(t, dsn, 2)); won != 1 {
			t.Errorf("%d drafts used what may be used once", won)
		}
	})
}

// raceForOneKey retries one request 60 times at once, and counts the grants.
func raceForOneKey(t *testing.T, ls []*ledger.Ledger) int {
	key := everything().Idempotency
	var mu sync.Mutex
	grants := map[uint64]string{}
	concurrently(60, func(i int) {
		d := everything()
		d.Idempotency = key
		r, err := ls[i%2].Append(t.Context(), tenant, d)
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if before, seen := grants[r.Seq]; seen && before != string(r.Claims) {
			t.Errorf("two retries got different claims of grant %d", r.Seq)
		}
		grants[r.Seq] = string(r.Claims)
	})
	checked(t, ls[0])
	return len(grants)
}

func TestIdempotencyRace(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		if n := raceForOneKey(t, instances(t, dsn, 2)); n != 1 {
			t.Errorf("one key gave %d grants", n)
		}
	})
}

// TestFreshReads: whatever another instance committed before the call is in the set after it,
// however many callers share the read.
func TestFreshReads(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		ls := instances(t, dsn, 2)
		ctx, cancel := context.WithCancel(t.Context())
		var committed atomic.Uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 60 {
				r, err := ls[0].Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
				}
				committed.Store(r.Seq)
			}
			cancel()
		}()
		concurrently(16, func(int) {
			for ctx.Err() == nil {
				least := committed.Load()
				set, err := ls[1].Revocations(t.Context(), tenant, true)
				if err != nil {
					t.Error(err)
					return
				}
				if last := set.Last(); last < least {
					t.Errorf("the set ends with %d, but %d was committed before the call", last, least)
					return
				}
			}
		})
		<-done
	})
}

// TestQueueIsBounded holds the turn and fills the queue.
func TestQueueIsBounded(t *testing.T) {
	g := newGate()
	l := openedWith(t, databases["sqlite"](t), ledger.Config{Timeout: patient.Timeout, MaxQueue: 2}, g.at)
	g.armed.Store(true)
	results := make(chan error, 3)
	for i := range 3 {
		go func() { _, err := l.Append(t.Context(), tenant, everything()); results <- err }()
		if i == 0 {
			<-g.waiting
		}
	}
	for l.Queued(tenant) < 2 {
		runtime.Gosched()
	}
	if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
		t.Errorf("beyond the bound: %v, want unavailable", err)
	}
	close(g.open)
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	checked(t, l)
}

// TestBatches: what was queued while the turn was held is committed together, within the bound, and
// calls with several drafts stay whole.
func TestBatches(t *testing.T) {
	g := newGate()
	registry := prometheus.NewRegistry()
	l := openedWith(t, databases["sqlite"](t), ledger.Config{Timeout: patient.Timeout, MaxBatch: 4, Registerer: registry}, g.at)
	g.armed.Store(true)
	results := make(chan error, 8)
	send := func(drafts ...*ledger.Draft) {
		for _, r := range l.AppendAll(t.Context(), tenant, drafts, nil) {
			results <- r.Err
		}
	}
	go send(everything())
	<-g.waiting
	for i, drafts := range [][]*ledger.Draft{
		{everything(), everything(), everything()}, // with the next one: the bound
		{everything()},
		{everything(), everything(), everything()}, // a batch of its own
	} {
		go send(drafts...)
		for l.Queued(tenant) <= i {
			runtime.Gosched()
		}
	}
	close(g.open)
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		switch family.GetName() {
		case "deputy_ledger_batch_size":
			if n := family.GetMetric()[0].GetHistogram().GetSampleCount(); n != 3 {
				t.Errorf("%d transactions, want 3", n)
			}
		case "deputy_ledger_queue_depth":
			if n := family.GetMetric()[0].GetGauge().GetValue(); n != 0 {
				t.Errorf("%v drafts are counted as waiting", n)
			}
		}
	}
	checked(t, l)
}
