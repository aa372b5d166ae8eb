package exchange_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
)

// BenchmarkExchange is the whole walk with real keys, real Redis and a real SQLite file; OpenFGA is a
// stand-in that answers at once. The callers sign their assertions before the clock starts.
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
