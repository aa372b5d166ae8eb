package exchange_test

import (
	"fmt"
	"testing"

	"google.golang.org/grpc"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
)

// longLived are the long-lived calls, each as its endpoint makes it: gRPC by a workload, the
// console by a person.
var longLived = map[string]func(*testing.T, *exchangetest.World, exchange.Inquiry) (closes func(), err error){
	"WatchRevocations": func(t *testing.T, w *exchangetest.World, q exchange.Inquiry) (func(), error) {
		watch, err := w.Engine.Watch(t.Context(), q)
		if err != nil {
			return nil, err
		}
		return watch.Close, nil
	},
	"StreamEntries": tailed,
	"the live page": tailed,
}

func tailed(t *testing.T, w *exchangetest.World, q exchange.Inquiry) (func(), error) {
	tail, err := w.Engine.Tail(t.Context(), q)
	if err != nil {
		return nil, err
	}
	return tail.Close, nil
}

// TestEveryStreamIsInTheTable: a new stream gets its places, and its row above.
func TestEveryStreamIsInTheTable(t *testing.T) {
	for _, service := range []grpc.ServiceDesc{
		deputyv1.TokenExchangeService_ServiceDesc, deputyv1.RevocationService_ServiceDesc, deputyv1.AuditService_ServiceDesc,
	} {
		for _, stream := range service.Streams {
			if longLived[stream.StreamName] == nil {
				t.Errorf("%s of %s has no row", stream.StreamName, service.ServiceName)
			}
		}
	}
}

// TestPlacesOfATenantAreItsOwn makes all callers of one tenant open as many calls as they can. One
// caller leaves room for the others, together they leave room for the other tenant, and callers
// that may not read take no room.
func TestPlacesOfATenantAreItsOwn(t *testing.T) {
	const limit, people = 16, 6
	for name, open := range longLived {
		t.Run(name, func(t *testing.T) {
			var crew []delegation.Principal
			for i := range people {
				crew = append(crew, delegation.Principal(fmt.Sprint("agent:auditor-", i)))
			}
			w := exchangetest.New(t, exchangetest.Config{Tenants: []string{"busy", "calm"}, Agents: append([]delegation.Principal{stranger}, crew...)})
			w.Engine.HasRoomFor(limit, limit)
			for _, n := range w.Tenants {
				for i, p := range crew {
					n.FGA.Allow(string(p), "auditor", "system:deputy")
					n.FGA.Allow(fmt.Sprint("user:auditor-", i), "auditor", "system:deputy")
				}
			}
			ask := func(tenant string, i int) (func(), error) {
				n := w.Tenants[tenant]
				q := exchange.Inquiry{Tenant: tenant}
				if q.Credentials = n.Credentials(t, crew[i]); name == "the live page" {
					q.Credentials = exchange.Credentials{Person: w.SignIn(t, n, fmt.Sprint("auditor-", i))}
				}
				return open(t, w, q)
			}
			fill := func(tenant string, i int) (closes []func()) {
				for {
					leave, err := ask(tenant, i)
					if err != nil {
						if e := delegation.AsError(err); e.Reason != delegation.RateLimited || e.RetryAfter == 0 {
							t.Fatal(err)
						}
						return closes
					}
					if closes = append(closes, leave); len(closes) > limit {
						t.Fatal("there is no bound")
					}
				}
			}
			if name != "WatchRevocations" {
				for range 2 * limit { // they may not read: they must take nothing
					q := exchange.Inquiry{Tenant: "calm", Credentials: w.Tenants["calm"].Credentials(t, stranger)}
					if _, err := open(t, w, q); delegation.AsError(err).Reason != delegation.NotFound {
						t.Fatal(err)
					}
				}
			}
			var busy []func()
			first := 0
			for i := range people {
				got := fill("busy", i)
				if i == 0 {
					first = len(got)
				}
				if i < 2 && len(got) == 0 {
					t.Errorf("caller %d of the tenant found nothing left by the one before", i)
				}
				busy = append(busy, got...)
			}
			calm := fill("calm", 0)
			if len(busy) > limit*3/4 || len(calm) < limit/4 && name == "WatchRevocations" || len(calm) == 0 {
				t.Errorf("the busy tenant has %d of %d places, one caller of the other got %d", len(busy), limit, len(calm))
			}
			for _, leave := range append(busy, calm...) {
				leave()
				leave() // gives back nothing of others
			}
			if again := fill("busy", 0); len(again) != first {
				t.Errorf("after all have left a caller gets %d places, at first it got %d", len(again), first)
			}
		})
	}
}
