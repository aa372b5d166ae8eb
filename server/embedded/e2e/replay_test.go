package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// TestReplayIsRefusedEverywhere uses one assertion twice: at the other instance, after a restart of
// both, and after Redis has lost its record of it.
func TestReplayIsRefusedEverywhere(t *testing.T) {
	addr, dsn := testservers.Redis(t), testservers.Postgres(t)
	d := deploy(t, plan{redis: addr, database: dsn})
	a, b := d.start(), d.start()
	memory := redis.NewClient(&redis.Options{Addr: addr})
	defer memory.Close()

	key, err := client.LoadKey(d.keyPath(planner))
	check(t, err)
	assertion, err := client.NewAssertion(client.AssertionConfig{Issuer: d.issuer, ClientID: string(planner), Key: key, Lifetime: time.Minute})
	check(t, err)
	used, err := assertion(t.Context())
	check(t, err)
	replay := func(i *instance) error {
		_, err := d.with(i, func(context.Context) (string, error) { return used, nil }).Exchange(t.Context(), stepIn(d.root()))
		return err
	}
	refused := func(when string, i *instance) {
		t.Helper()
		if err := replay(i); delegation.AsError(err).Reason != delegation.AssertionReplayed {
			t.Errorf("%s: %v", when, err)
		}
	}
	check(t, replay(a))
	refused("at the same instance", a)
	refused("at the other instance", b)
	check(t, memory.FlushAll(t.Context()).Err())
	refused("after Redis lost everything", b)
	a.stop()
	b.stop()
	a = d.start()
	refused("after a restart", a)
	check(t, memory.FlushAll(t.Context()).Err())
	refused("after a restart and with an empty Redis", a)

	// The control: without the ledger's row, and with an empty Redis, the same assertion passes.
	conn, err := pgx.Connect(t.Context(), dsn)
	check(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "DELETE FROM single_uses")
	check(t, err)
	check(t, memory.FlushAll(t.Context()).Err())
	if err := replay(a); err != nil {
		t.Errorf("the control: %v", err)
	}
}

// TestTwoInstancesKeepOneSequence makes two instances on one PostgreSQL and one Redis grant
// concurrently.
func TestTwoInstancesKeepOneSequence(t *testing.T) {
	d := deploy(t, plan{redis: testservers.Redis(t), database: testservers.Postgres(t)})
	const callers, each = 8, 10
	var work sync.WaitGroup
	var mu sync.Mutex
	numbers := make(map[uint64]string) // of entries, with the jti
	unanswered := 0                    // calls that a deadline ended on a busy machine
	for n, i := range []*instance{d.start(), d.start()} {
		for range callers {
			c := d.as(i, planner)
			work.Go(func() {
				for answered := 0; answered < each && t.Context().Err() == nil; {
					token, err := c.Exchange(t.Context(), stepIn(d.root()))
					mu.Lock()
					switch other, taken := numbers[tokenEntry(token)]; {
					case delegation.AsError(err) != nil && delegation.AsError(err).Reason == delegation.DependencyDown:
						unanswered++
					case err != nil:
						t.Errorf("instance %d: %v", n, err)
						answered++
					case taken:
						t.Errorf("entry %d is %s and %s", token.Entry, other, token.JTI)
						answered++
					default:
						numbers[token.Entry] = token.JTI
						answered++
					}
					mu.Unlock()
				}
			})
		}
	}
	work.Wait()
	checkLedger(t, d)
	check(t, withLedger(d, func(l *ledger.Ledger) error {
		size, _, err := l.Tree(t.Context(), "acme")
		if err != nil {
			return err
		}
		// Each answer has an entry, and each entry an answer, except for calls without an answer.
		if len(numbers) != 2*callers*each || size > uint64(len(numbers)+unanswered) {
			t.Errorf("%d entries, %d of them named by answers, %d calls without an answer", size, len(numbers), unanswered)
		}
		for n, jti := range numbers {
			if e, err := l.EntryAt(t.Context(), "acme", n); err != nil || e.ID != jti {
				return fmt.Errorf("entry %d should be grant %s: %v", n, jti, err)
			}
		}
		return nil
	}))
}

func tokenEntry(token *client.Token) uint64 {
	if token == nil {
		return 0
	}
	return token.Entry
}
