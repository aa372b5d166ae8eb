package guard_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

func guardOn(t *testing.T, server *testservers.RedisServer) (*guard.Guard, redis.UniversalClient) {
	t.Helper()
	client, err := guard.Dial(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return guard.New(guard.Config{Client: client, Timeout: 10 * time.Second}), client
}

// TestReadyNeedsWrites: a Redis that answers and takes no writes is not ready, and is again once it takes them.
func TestReadyNeedsWrites(t *testing.T) {
	g, client := guardOn(t, testservers.NewRedis(t))
	for name, state := range map[string]struct{ on, off []any }{
		"out of memory": {[]any{"CONFIG", "SET", "maxmemory", "1"}, []any{"CONFIG", "SET", "maxmemory", "0"}},
		"a replica":     {[]any{"REPLICAOF", "127.0.0.1", "1"}, []any{"REPLICAOF", "NO", "ONE"}},
	} {
		for _, ready := range []bool{false, true} {
			change := state.on
			if ready {
				change = state.off
			}
			if err := client.Do(t.Context(), change...).Err(); err != nil {
				t.Fatal(err)
			}
			if err := g.Ready(t.Context()); (err == nil) != ready {
				t.Errorf("%s: ready is not %v: %v", name, ready, err)
			}
		}
	}
}
