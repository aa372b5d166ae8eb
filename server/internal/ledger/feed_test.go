package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// TestEventsFollowCommits has a revocation fail to be committed. Verifiers must not receive it,
// because the number belongs to another one then.
func TestEventsFollowCommits(t *testing.T) {
	f := &faults{}
	l := openedWith(t, databases["sqlite"](t), patient, f.at)
	if _, err := l.LastRevocation(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	_, _, changed := l.Events(tenant, 0)
	f.set(once("before commit"))
	if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "lost")); reason(err) != delegation.DependencyDown {
		t.Fatalf("Append: %v", err)
	}
	events, _, _ := l.Events(tenant, 0)
	told := len(events) > 0
	select {
	case <-changed:
		told = true
	default:
	}
	if told {
		t.Error("watchers received a revocation that was never committed")
	}
}

// TestEventsHaveNoGap restarts where a revocation between two others has ended.
func TestEventsHaveNoGap(t *testing.T) {
	dsn, clock := databases["sqlite"](t), ledgertest.NewClock()
	config := ledger.Config{Timeout: patient.Timeout, Now: clock.Now}
	first := opened(t, dsn, config)
	brief := ledgertest.Revocation(delegation.BanToken, "brief")
	brief.Revocation.Until = clock.Now().Add(time.Minute)
	for _, d := range []*ledger.Draft{ledgertest.Revocation(delegation.BanChain, "a"), brief, ledgertest.Revocation(delegation.BanChain, "b")} {
		if _, err := first.Append(t.Context(), tenant, d); err != nil {
			t.Fatal(err)
		}
	}
	clock.Add(time.Hour)
	l := opened(t, dsn, config)
	if _, err := l.LastRevocation(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	events, complete, _ := l.Events(tenant, 1)
	if complete && (len(events) == 0 || events[0].Prev != 1) {
		t.Errorf("events after 1 are %v, and they are called complete", events)
	}
}

// TestWatchers has many watchers follow two instances that revoke at the same time. Each must see
// every revocation once, in order, without a gap.
func TestWatchers(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		const watchers, each = 200, 40
		ls := instances(t, dsn, 2)
		for _, l := range ls {
			if _, err := l.LastRevocation(t.Context(), tenant); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for i := range watchers {
			l := ls[i%2]
			wg.Go(func() {
				for applied, n := uint64(0), 0; n < 2*each; {
					events, complete, changed := l.Events(tenant, applied)
					if !complete {
						t.Errorf("watcher %d was sent back after %d", i, applied)
						return
					}
					for _, e := range events {
						if e.Prev != applied {
							t.Errorf("watcher %d got %d after %d, want after %d", i, e.Seq, applied, e.Prev)
							return
						}
						applied, n = e.Seq, n+1
					}
					if len(events) > 0 {
						continue
					}
					select {
					case <-changed:
					case <-t.Context().Done():
						return
					}
				}
			})
		}
		concurrently(4, func(i int) {
			l := ls[i%2]
			for n := range each / 2 {
				if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, fmt.Sprint(i, n))); err != nil {
					t.Error(err)
				}
				if n%5 == 0 {
					if _, err := ls[1-i%2].LastRevocation(t.Context(), tenant); err != nil {
						t.Error(err)
					}
				}
			}
		})
		for _, l := range ls {
			if _, err := l.LastRevocation(t.Context(), tenant); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		for _, l := range ls {
			checked(t, l)
		}
	})
}

// TestRecentIsBounded has more revocations than are kept for watchers; those that have ended go.
func TestRecentIsBounded(t *testing.T) {
	const n = 5*ledger.MostRecent/2 + 7
	clock := ledgertest.NewClock()
	l := opened(t, databases["sqlite"](t), ledger.Config{Timeout: patient.Timeout, Now: clock.Now})
	list := make([]delegation.Revocation, n)
	until := clock.Now().Add(time.Minute)
	for i := range list {
		list[i] = delegation.Revocation{Seq: uint64(i + 1), Prev: uint64(i), At: clock.Now(), Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprint(i)}}
		if i%10 > 0 {
			list[i].Until = until
		}
	}
	for begin := 0; begin < n; begin += 1000 {
		l.Advance(tenant, list[begin:min(begin+1000, n)])
	}
	for after, want := range map[uint64]bool{0: false, 1: false, n - 3*ledger.MostRecent/2: false, n - ledger.MostRecent/2: true, n: true} {
		events, complete, _ := l.Events(tenant, after)
		if complete != want || complete && len(events) != n-int(after) {
			t.Errorf("after %d of %d: %d events, complete %t", after, n, len(events), complete)
		}
	}
	live, recent := l.Kept(tenant)
	if live != n || recent > 2*ledger.MostRecent {
		t.Errorf("%d live and %d recent are kept, want %d and at most %d", live, recent, n, 2*ledger.MostRecent)
	}
	clock.Add(2 * time.Minute)
	l.Sweep(tenant)
	if live, _ := l.Kept(tenant); live != (n+9)/10 {
		t.Errorf("%d are kept after most have ended, want %d", live, (n+9)/10)
	}
	if _, complete, _ := l.Events(tenant, n-10); !complete {
		t.Error("what has ended is missing among the recent ones")
	}
}

// TestLongHistory starts on a ledger with more live revocations than one page.
func TestLongHistory(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		const n = 2*ledger.PageSize + 5
		stuff(t, dsn, n)
		l := opened(t, dsn, patient)
		if _, err := l.Append(t.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "next")); err != nil {
			t.Fatal(err)
		}
		live, last, err := l.Live(t.Context(), tenant)
		if err != nil || len(live) != n+1 || last != n+1 {
			t.Fatalf("%d live, last %d, %v; want %d", len(live), last, err, n+1)
		}
		if _, complete, _ := l.Events(tenant, 0); !complete {
			t.Error("the pages don't follow each other")
		}
		set, err := l.Revocations(t.Context(), tenant, true)
		if err != nil || set.Len() != n+1 {
			t.Errorf("the set has %d, %v", set.Len(), err)
		}
	})
}

// stuff puts n revocations into a database, without what makes them provable.
func stuff(t testing.TB, dsn string, n int) {
	t.Helper()
	const columns = `tenant, seq, kind, time, jti, parent, txn, root, holder_key, outcome, reason, scopes, audiences,
		expiry, model_id, trace_id, voids, prev, target_kind, target_id, until, subject, actor, caller, actors, peer, detail,
		details, actor_proof, target_principal, target_subject, digests, salts, leaf`
	numbers := fmt.Sprintf(`WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < %d)`, n)
	nothing := `x''`
	if strings.HasPrefix(dsn, "postgres") {
		nothing = `''::bytea`
	}
	execute(t, dsn, numbers+` INSERT INTO entries (`+columns+`) SELECT '`+tenant+`', i, 'revocation', 1, '', '', '', '', '', 'done', '', '', '[]',
		0, '', '', 0, i - 1, 'token', '01KAAAAAAAAAAAAAAAAAAAAAA' || i, 0, '', '', 'user:r', '', '', '', '', '', '', '', `+nothing+`, `+nothing+`, `+nothing+` FROM s`)
	execute(t, dsn, fmt.Sprintf(`INSERT INTO heads (tenant, seq, time, revocation, tree_size) VALUES ('%s', %d, 1, %d, %d)`, tenant, n, n, n))
	moveHead(t, dsn, uint64(n))
}

// TestPlans wants indexes used by whatever reads a table that grows.
func TestPlans(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		stuff(t, dsn, 50_000)
		l := opened(t, dsn, patient)
		l.BuildIndex(t, tenant, 1000)
		if strings.HasPrefix(dsn, "postgres") {
			execute(t, dsn, `ANALYZE`)
		}
		for name, sql := range ledger.FrequentStatements {
			plan := l.Plan(t, sql)
			t.Logf("%s:\n%s", name, plan)
			if wasteful(plan) {
				t.Errorf("%s reads more than it needs:\n%s", name, plan)
			}
		}
		if plan := l.Plan(t, ledger.WastefulStatement); !wasteful(plan) {
			t.Errorf("what no index helps looks fine, so this shows nothing:\n%s", plan)
		}
	})
}

// wasteful plans go over a whole table. Claims are few in these tests, and PostgreSQL knows.
func wasteful(plan string) bool {
	for _, scan := range []string{"Seq Scan on entries", "Seq Scan on postings", "SCAN entries", "SCAN e\n", "SCAN claims", "SCAN c\n", "SCAN postings"} {
		if strings.Contains(plan, scan) {
			return true
		}
	}
	return false
}

// BenchmarkEvents is what a revocation costs with a thousand watchers, until the last one has it.
func BenchmarkEvents(b *testing.B) {
	for _, watchers := range []int{0, 1000} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			l := opened(b, databases["sqlite"](b), patient)
			l.Advance(tenant, nil)
			var wg sync.WaitGroup
			var told atomic.Int64
			done := make(chan struct{})
			for range watchers {
				wg.Go(func() {
					for applied := uint64(0); ; {
						events, _, changed := l.Events(tenant, applied)
						if n := len(events); n > 0 {
							applied = events[n-1].Seq
							told.Add(int64(n))
							continue
						}
						select {
						case <-changed:
						case <-done:
							return
						}
					}
				})
			}
			var inAdvance time.Duration
			seq := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				l.Advance(tenant, []delegation.Revocation{{Seq: seq + 1, Prev: seq, At: start, Until: start.Add(time.Minute), Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprint(seq)}}})
				inAdvance += time.Since(start)
				seq++
				for told.Load() < int64(seq)*int64(watchers) {
					<-time.After(10 * time.Microsecond)
				}
			}
			b.ReportMetric(float64(inAdvance.Nanoseconds())/float64(seq), "ns/advance")
			close(done)
			wg.Wait()
		})
	}
	b.Run("read", func(b *testing.B) {
		l := opened(b, databases["sqlite"](b), patient)
		list := live(100_000)
		l.Advance(tenant, list)
		random := rand.New(rand.NewPCG(1, 2))
		b.ReportAllocs()
		for b.Loop() {
			after := uint64(random.IntN(len(list)-60_000) + 60_000)
			if events, complete, _ := l.Events(tenant, after); !complete || len(events) != len(list)-int(after) {
				b.Fatal(after, len(events), complete)
			}
		}
	})
}

func live(n int) []delegation.Revocation {
	list := make([]delegation.Revocation, n)
	now := time.Now()
	for i := range list {
		list[i] = delegation.Revocation{Seq: uint64(i + 1), Prev: uint64(i), At: now, Until: now.Add(24 * time.Hour),
			Target: delegation.Target{Kind: delegation.BanToken, ID: fmt.Sprintf("01K%023d", i)}}
	}
	return list
}

// BenchmarkLongHistory loads a million live revocations, and measures their memory: the set
// and everything that watchers, snapshots and the lists in Redis are made from.
func BenchmarkLongHistory(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			const n = 1_000_000
			dsn := databases[kind](b)
			stuff(b, dsn, n)
			for b.Loop() {
				before := heap()
				l := opened(b, dsn, ledger.Config{})
				start := time.Now()
				for {
					_, live, err := l.Live(b.Context(), tenant)
					if err == nil && live == n {
						break
					}
					if time.Since(start) > time.Minute {
						b.Fatal(live, err)
					}
				}
				b.ReportMetric(time.Since(start).Seconds(), "s/load")
				b.ReportMetric(float64(heap()-before)/(1<<20), "MB/million")
				start = time.Now()
				l.Advance(tenant, []delegation.Revocation{{Seq: n + 1, Prev: n, Target: delegation.Target{Kind: delegation.CutTenant}}})
				b.ReportMetric(time.Since(start).Seconds()*1000, "ms/advance")
				start = time.Now()
				l.Sweep(tenant)
				b.ReportMetric(time.Since(start).Seconds()*1000, "ms/sweep")
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkImpact(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			const n = 10_000
			l := opened(b, databases[kind](b), ledger.Config{Timeout: 30 * time.Second})
			concurrently(64, func(int) {
				for range n/64 + 1 {
					if _, err := l.Append(b.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:planner")); err != nil {
						b.Error(err)
					}
				}
			})
			for _, c := range []struct {
				hits   int
				target delegation.Target
			}{{0, delegation.Target{Kind: delegation.CutSubject, ID: "user:bob"}}, {n, delegation.Target{Kind: delegation.CutTenant}}} {
				b.Run(fmt.Sprintf("hits=%d", c.hits), func(b *testing.B) {
					for b.Loop() {
						if _, tokens, _, err := ledgertest.Impact(b.Context(), l, tenant, c.target, 1000); err != nil || tokens < c.hits {
							b.Fatal(tokens, err)
						}
					}
					b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/n, "µs/grant")
				})
			}
		})
	}
}
