package exchange_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/rpc"
	"deputy.example/deputy/server/internal/testservers"
)

// TestSearchByNames: SearchEntries finds grants by jti, chain, key and caller's address, on both
// databases.
func TestSearchByNames(t *testing.T) {
	for name, dsn := range map[string]func(testing.TB) string{
		"sqlite": func(testing.TB) string { return "" }, "postgres": testservers.Postgres,
	} {
		t.Run(name, func(t *testing.T) {
			w := exchangetest.New(t, exchangetest.Config{DSN: dsn(t)})
			n := w.Tenant()
			n.FGA.Allow(string(exchangetest.Planner), "auditor", "system:deputy")
			chain := w.Chain(t, n, exchangetest.Planner, exchangetest.Researcher)
			call := n.Call(t, chain[1].AccessToken, exchangetest.Researcher, exchangetest.Writer)
			call.Children[0].ActorToken, call.Children[0].ActorTokenType = "", ""
			call.Children[0].RequestedActor = string(exchangetest.Writer)
			call.Children[0].ActorConfirmation = n.Clients[exchangetest.Writer].KeyID
			bound, refusal := w.One(t.Context(), call)
			if refusal != nil {
				t.Fatal(refusal)
			}
			chain = append(chain, bound)
			w.Chain(t, n, exchangetest.Planner) // another one
			server, err := rpc.New(rpc.Config{Engine: rpc.For(w.Engine)})
			if err != nil {
				t.Fatal(err)
			}
			listener := bufconn.Listen(1 << 20)
			go func() { _ = server.Serve(listener) }()
			conn, err := grpc.NewClient("passthrough:///deputy.example", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
			if err != nil {
				t.Fatal(err)
			}
			defer server.Stop()
			defer conn.Close()
			search := func(r *deputyv1.SearchEntriesRequest) (found []*deputyv1.Entry) {
				t.Helper()
				r.Kind = deputyv1.EntryKind_ENTRY_KIND_GRANT
				ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+n.Assertion(t, exchangetest.Planner))
				response, err := deputyv1.NewAuditServiceClient(conn).SearchEntries(ctx, r)
				if err != nil {
					t.Fatal(err)
				}
				return response.GetEntries()
			}
			last := bound.Claims
			one := search(&deputyv1.SearchEntriesRequest{Jti: last.ID})
			if len(one) != 1 || one[0].GetJti() != last.ID || one[0].GetKey() == "" {
				t.Fatalf("by jti: %v", one)
			}
			if found := search(&deputyv1.SearchEntriesRequest{Txn: one[0].GetTxn()}); len(found) != len(chain) {
				t.Errorf("by chain: %v", found)
			}
			if found := search(&deputyv1.SearchEntriesRequest{Key: one[0].GetKey()}); len(found) != 1 || found[0].GetJti() != last.ID {
				t.Errorf("by key: %v", found)
			}
			if found := search(&deputyv1.SearchEntriesRequest{Jti: last.ID, Peer: one[0].GetPeer()}); len(found) != 1 {
				t.Errorf("by address %q: %v", one[0].GetPeer(), found)
			}
			if found := search(&deputyv1.SearchEntriesRequest{Peer: "203.0.113.9"}); len(found) != 0 {
				t.Errorf("by another address: %v", found)
			}
		})
	}
}
