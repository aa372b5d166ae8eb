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
