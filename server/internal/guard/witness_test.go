package guard_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
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

// TestWitness: Redis remembers the later incarnation and the newer entry, and keeps lists from a former one.
func TestWitness(t *testing.T) {
	g, client := guardOn(t, testservers.NewRedis(t))
	say := func(number, seq uint64, id string) guard.Witness {
		t.Helper()
		w := guard.Witness{Number: number, ID: id, Seq: seq, Leaf: [32]byte{byte(seq)}}
		if err := g.Testify(t.Context(), map[string]guard.Witness{"acme": w}); err != nil {
			t.Fatal(err)
		}
		known, err := g.Witness(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		return known
	}
	for i, step := range []struct {
		number, seq uint64
		id, want    string
		wantSeq     uint64
	}{{1, 5, "a", "a", 5}, {1, 4, "a", "a", 5}, {1, 9, "b", "a", 5}, {1, 7, "a", "a", 7}, {0, 99, "z", "a", 7}, {2, 3, "c", "c", 3}} {
		if known := say(step.number, step.seq, step.id); !known.There || known.ID != step.want || known.Seq != step.wantSeq || known.Leaf[0] != byte(step.wantSeq) {
			t.Errorf("step %d: %+v", i, known)
		}
	}
	revocation := delegation.Revocation{Seq: 1, Target: delegation.Target{Kind: delegation.BanChain, ID: "x"}}
	g.On(1)
	if err := g.Publish(t.Context(), "acme", revocation); !errors.Is(err, guard.ErrSuperseded) {
		t.Errorf("a former incarnation published: %v", err)
	}
	if err := g.Republish(t.Context(), "acme", nil, 8); !errors.Is(err, guard.ErrSuperseded) {
		t.Errorf("a former incarnation made lists: %v", err)
	}
	g.On(2)
	if err := g.Publish(t.Context(), "acme", revocation); err != nil {
		t.Error(err)
	}
	lost, complete, err := g.Remembered(t.Context(), "acme", 0)
	if err != nil || !complete || len(lost) != 1 || lost[0].Target != revocation.Target {
		t.Errorf("remembered %v, complete %v, %v", lost, complete, err)
	}
	if err := client.HSet(t.Context(), "{acme}:ledger:witness", "seq", "-1").Err(); err != nil {
		t.Fatal(err)
	}
	if known, err := g.Witness(t.Context(), "acme"); err != nil || known.There {
		t.Errorf("a damaged witness: %+v, %v", known, err)
	}
	if err := g.Discard(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if _, complete, err := g.Remembered(t.Context(), "acme", 0); err != nil || complete {
		t.Errorf("after it was discarded: complete %v, %v", complete, err)
	}
}
