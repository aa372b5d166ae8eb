package embedded

import (
	"testing"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// BenchmarkExchange is one whole exchange, over gRPC on loopback, with everything in this process:
// allocations and time are those of client, Deputy, OpenFGA and Redis together.
//
//	go test -run '^$' -bench Exchange -benchmem -cpuprofile cpu.prof . && go tool pprof -top cpu.prof
func BenchmarkExchange(b *testing.B) {
	e, err := New(b.Context(), Config{Dir: b.TempDir(), GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Ops: "127.0.0.1:0", Dev: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	run(b, e)
	root, err := e.issuer.AccessToken(alice.ID())
	if err != nil {
		b.Fatal(err)
	}
	key, err := client.LoadKey(e.clientKeyPath(planner))
	if err != nil {
		b.Fatal(err)
	}
	credential, err := client.NewAssertion(client.AssertionConfig{Issuer: e.Issuer(), ClientID: string(planner), Key: key})
	if err != nil {
		b.Fatal(err)
	}
	c, err := client.New(client.Config{Address: e.config.GRPC, Transport: client.PlaintextLoopback, Credential: credential})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	exchange := func() error {
		_, err := c.Exchange(b.Context(), client.ExchangeRequest{
			SubjectToken: client.NewSecret(root),
			Child:        client.Child{Scopes: delegation.Scopes{"calendar.read"}, Audience: []string{calendarAudience}},
		})
		return err
	}
	if err := exchange(); err != nil {
		b.Fatal(err)
	}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := exchange(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 at once", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := exchange(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
