package ledger_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

func BenchmarkAppend(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/writers=%d", kind, n), func(b *testing.B) {
				l := opened(b, databases[kind](b), ledger.Config{Timeout: 30 * time.Second})
				b.ReportAllocs()
				b.ResetTimer()
				appendGrants(b, l, n, b.N)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}

// BenchmarkTree compares appending with the tree and without it, round by round on two databases of one
// server, so that whatever else the machine does slows down both. One of its operations is an append of each.
func BenchmarkTree(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/writers=%d", kind, n), func(b *testing.B) {
				config := ledger.Config{Timeout: 30 * time.Second}
				with, without := opened(b, databases[kind](b), config), opened(b, databases[kind](b), config)
				without.SwitchOff(ledger.NoTree)
				var took [2]time.Duration
				b.ResetTimer()
				for left, turn := b.N, 0; left > 0; turn++ {
					round := min(left, 512)
					for i := range 2 { // each is the first one every other time
						i = (i + turn) % 2
						start := time.Now()
						appendGrants(b, []*ledger.Ledger{with, without}[i], n, round)
						took[i] += time.Since(start)
					}
					left -= round
				}
				b.ReportMetric(float64(took[0].Microseconds())/float64(b.N), "µs/with")
				b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "µs/without")
				b.ReportMetric(float64(took[0])/float64(took[1]), "with/without")
			})
		}
	}
}

// appendGrants has n writers append so many grants between them.
func appendGrants(b *testing.B, l *ledger.Ledger, n, grants int) {
	var left atomic.Int64
	left.Store(int64(grants))
	concurrently(n, func(int) {
		for left.Add(-1) >= 0 {
			if _, err := l.Append(b.Context(), tenant, ledgertest.Grant(time.Now(), "user:alice", "agent:planner")); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkRevocations(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			l := opened(b, databases[kind](b), ledger.Config{})
			if _, err := l.Append(b.Context(), tenant, ledgertest.Revocation(delegation.BanChain, "x")); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Revocations(b.Context(), tenant, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	l := opened(b, databases["sqlite"](b), ledger.Config{})
	d := everything()
	if _, err := l.Append(b.Context(), tenant, d); err != nil {
		b.Fatal(err)
	}
	e, err := l.Entry(b.Context(), tenant, d.ID)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Verify(); err != nil {
			b.Fatal(err)
		}
	}
}
