package exchange_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

// BenchmarkExchange is the whole walk with real keys, real Redis and a real SQLite file. A
// replacement for OpenFGA answers immediately. The callers sign their assertions before the clock
// starts.
func BenchmarkExchange(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			w := exchangetest.New(b, exchangetest.Config{Limits: exchange.Limits{MaxLifetime: time.Hour, DefaultLifetime: time.Hour}})
			n := w.Tenant()
			parent := w.Chain(b, n, planner)[0].AccessToken
			named := n.Call(b, parent, planner, researcher)
			calls := make([]exchange.Call, b.N)
			for i := range calls {
				calls[i] = named
				calls[i].Credentials = n.Credentials(b, planner)
			}
			var next atomic.Int64
			var all sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range callers {
				all.Go(func() {
					for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
						if _, err := w.One(b.Context(), calls[i]); err != nil {
							b.Errorf("%v (cause: %v)", err, err.Unwrap())
							return
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
		})
	}
}

// BenchmarkRevoke revokes one target after the other, among few and among many live grants of one
// agent and one subject. The time must not grow with their number. A suspension of that agent hits
// all of them.
func BenchmarkRevoke(b *testing.B) {
	for _, live := range []int{1_000, 100_000} {
		w, n, _ := hospital(b)
		crowd := make([]*ledger.Draft, 250)
		for range live / len(crowd) {
			for i := range crowd {
				crowd[i] = ledgertest.Grant(w.Clock().Now(), alice, planner)
			}
			for _, r := range w.Ledger.AppendAll(b.Context(), n.Name, crowd, nil) {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
			}
		}
		indexed(b, w)
		for name, target := range map[string]func(jti string) delegation.Target{
			"token": func(jti string) delegation.Target { return delegation.Target{Kind: delegation.BanToken, ID: jti} },
			"agent": func(string) delegation.Target {
				return delegation.Target{Kind: delegation.BanSuspend, ID: string(planner)}
			},
			"subject": func(string) delegation.Target {
				return delegation.Target{Kind: delegation.CutSubject, ID: "user:nobody"}
			},
			"key": func(jti string) delegation.Target { return delegation.Target{Kind: delegation.BanKey, ID: jti} },
		} {
			b.Run(fmt.Sprintf("%s/live=%d", name, live), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					call := exchange.RevokeCall{Tenant: n.Name, Credentials: n.Credentials(b, responder), Target: target(crowd[i%len(crowd)].ID)}
					b.StartTimer()
					if _, err := w.Engine.Revoke(b.Context(), call); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// indexed waits until the search index is built, as it is in service.
func indexed(t testing.TB, w *exchangetest.World) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Ledger.Maintain(ctx, "default") }()
	_, built := await(time.Minute, func() bool {
		whole, err := w.Ledger.IndexBuilt(ctx, "default")
		return err == nil && whole
	})
	stop()
	if err := <-done; err != nil || !built {
		t.Fatalf("the index is built: %t, %v", built, err)
	}
}
