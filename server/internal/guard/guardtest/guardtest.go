// Package guardtest is the conformance suite of guard. Every store that guard can be on passes
// Checks; a Redis passes RedisChecks too, which are about what is lost or damaged there and about
// the keys that other services read. Each check is a function that returns what it found, so that
// guard's own tests can also show that it fails when the protection is gone.
package guardtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// Check is one thing that must hold for instances on one empty store.
type Check struct {
	Name string
	Run  func(ctx context.Context, store guard.Config) error
}

// pair makes a check of two instances.
func pair(run func(ctx context.Context, a, b *guard.Guard) error) func(context.Context, guard.Config) error {
	return func(ctx context.Context, store guard.Config) error {
		return run(ctx, guard.New(store), guard.New(store))
	}
}

// Checks are what every store must pass.
var Checks = slices.Concat(requestChecks, nonceChecks, listChecks, []Check{{"what is remembered of a ledger", pair(witness)}})

var requestChecks = []Check{
	{"a burst passes, then the rate", pair(burstThenRate)},
	{"a cost is taken whole or not at all", pair(costIsWhole)},
	{"a cost beyond the burst is told apart", pair(costBeyondBurst)},
	{"a limit that is not one admits nothing", pair(emptyLimit)},
	{"callers and tenants have buckets of their own", pair(separateBuckets)},
	{"two instances share a bucket", pair(sharedBucket)},
	{"a lowered limit takes effect", pair(loweredLimit)},
	{"a replay is refused by every instance", pair(replayRefused)},
	{"one of many simultaneous uses wins", pair(oneWinner)},
	{"a replay takes nothing of the rate", pair(replayIsFree)},
	{"uses that only look alike are different", pair(separateUses)},
	{"what has expired is refused", pair(expiredUse)},
	{"a use is forgotten after its time", pair(forgottenUse)},
}

// Run runs checks, each on the store that empty gives.
func Run(t *testing.T, checks []Check, empty func(t *testing.T) guard.Config) {
	for _, c := range checks {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t.Context(), empty(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

const tenant, caller = "acme", delegation.Principal("agent:planner")

// expect compares an error's reason; "" expects none.
func expect(what string, err error, want delegation.Reason) error {
	var got delegation.Reason
	var e *delegation.Error
	switch {
	case errors.As(err, &e):
		got = e.Reason
	case err != nil:
		return fmt.Errorf("%s: an untyped error: %w", what, err)
	}
	if got != want {
		return fmt.Errorf("%s: got reason %q (%v), want %q", what, got, err, want)
	}
	return nil
}

func burstThenRate(ctx context.Context, g, _ *guard.Guard) error {
	limit := guard.Limit{Rate: 4, Burst: 3}
	for i := range limit.Burst {
		if err := expect(fmt.Sprintf("request %d", i), g.Admit(ctx, tenant, caller, 1, limit), ""); err != nil {
			return err
		}
	}
	refusal := g.Admit(ctx, tenant, caller, 1, limit)
	if err := expect("the request after the burst", refusal, delegation.RateLimited); err != nil {
		return err
	}
	wait := delegation.AsError(refusal).RetryAfter
	if wait <= 0 || wait > time.Second/4 {
		return fmt.Errorf("told to retry after %v, want at most 250ms", wait)
	}
	<-time.After(wait + 5*time.Millisecond)
	return expect("the request after the wait", g.Admit(ctx, tenant, caller, 1, limit), "")
}

func costIsWhole(ctx context.Context, g, _ *guard.Guard) error {
	limit := guard.Limit{Rate: 1, Burst: 10}
	return errors.Join(
		expect("6 of 10", g.Admit(ctx, tenant, caller, 6, limit), ""),
		expect("6 of the remaining 4", g.Admit(ctx, tenant, caller, 6, limit), delegation.RateLimited),
		expect("4 of the remaining 4", g.Admit(ctx, tenant, caller, 4, limit), ""),
		expect("one more", g.Admit(ctx, tenant, caller, 1, limit), delegation.RateLimited),
	)
}

func costBeyondBurst(ctx context.Context, g, _ *guard.Guard) error {
	return expect("11 of 10", g.Admit(ctx, tenant, caller, 11, guard.Limit{Rate: 1, Burst: 10}), delegation.RequestTooLarge)
}

func emptyLimit(ctx context.Context, g, _ *guard.Guard) error {
	return errors.Join(
		expect("no limit", g.Admit(ctx, tenant, caller, 1, guard.Limit{}), delegation.Internal),
		expect("a negative rate", g.Admit(ctx, tenant, caller, 1, guard.Limit{Rate: -1, Burst: 1}), delegation.Internal),
		expect("a cost of 0", g.Admit(ctx, tenant, caller, 0, guard.Limit{Rate: 1, Burst: 1}), delegation.Internal),
		expect("a negative cost", g.Admit(ctx, tenant, caller, -1, guard.Limit{Rate: 1, Burst: 1}), delegation.Internal),
	)
}

func separateBuckets(ctx context.Context, g, _ *guard.Guard) error {
	one := guard.Limit{Rate: 1, Burst: 1}
	return errors.Join(
		expect("the caller", g.Admit(ctx, tenant, caller, 1, one), ""),
		expect("another caller", g.Admit(ctx, tenant, "agent:researcher", 1, one), ""),
		expect("the caller's name in another tenant", g.Admit(ctx, "globex", caller, 1, one), ""),
		expect("the caller again", g.Admit(ctx, tenant, caller, 1, one), delegation.RateLimited),
	)
}

func sharedBucket(ctx context.Context, a, b *guard.Guard) error {
	limit := guard.Limit{Rate: 1, Burst: 20}
	start := time.Now()
	var admitted atomic.Int64
	var wg sync.WaitGroup
	failures := make(chan error, 60)
	for i := range 60 {
		g := []*guard.Guard{a, b}[i%2]
		wg.Go(func() {
			switch err := g.Admit(ctx, tenant, caller, 1, limit); {
			case err == nil:
				admitted.Add(1)
			default:
				failures <- expect("beyond the burst", err, delegation.RateLimited)
			}
		})
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		if err != nil {
			return err
		}
	}
	most := int64(limit.Burst) + int64(time.Since(start).Seconds()*float64(limit.Rate)) + 1
	if n := admitted.Load(); n < int64(limit.Burst) || n > most {
		return fmt.Errorf("%d of 60 were admitted, want %d to %d", n, limit.Burst, most)
	}
	return nil
}

func loweredLimit(ctx context.Context, g, _ *guard.Guard) error {
	low := guard.Limit{Rate: 10, Burst: 2}
	if err := expect("all of 1000", g.Admit(ctx, tenant, caller, 1000, guard.Limit{Rate: 1, Burst: 1000}), ""); err != nil {
		return err
	}
	refusal := g.Admit(ctx, tenant, caller, 1, low)
	if err := expect("at the lower limit", refusal, delegation.RateLimited); err != nil {
		return err
	}
	if wait := delegation.AsError(refusal).RetryAfter; wait > time.Second/10 {
		return fmt.Errorf("must wait %v for a bucket that gets one every 100ms", wait)
	}
	return nil
}

func use(issuer, key, id string) []guard.Use {
	return []guard.Use{{Issuer: issuer, Key: key, ID: id, Until: time.Now().Add(time.Minute)}}
}

// note uses something as a caller that no rate bounds.
func note(ctx context.Context, g *guard.Guard, tenant string, uses []guard.Use) error {
	return g.Admit(ctx, tenant, "agent:noted", 1, guard.Limit{Rate: 1e6, Burst: 1e6}, uses...)
}

func replayRefused(ctx context.Context, a, b *guard.Guard) error {
	first := use("https://issuer.example", "key", "id-1")
	mixed := append(use("https://issuer.example", "key", "id-2"), first...)
	return errors.Join(
		expect("the first use", note(ctx, a, tenant, first), ""),
		expect("the same instance again", note(ctx, a, tenant, first), delegation.AssertionReplayed),
		expect("the other instance", note(ctx, b, tenant, first), delegation.AssertionReplayed),
		expect("beside a new one", note(ctx, b, tenant, mixed), delegation.AssertionReplayed),
		expect("twice in one request", note(ctx, a, tenant, append(use("i", "k", "id-3"), use("i", "k", "id-3")...)), delegation.AssertionReplayed),
		expect("nothing to note", note(ctx, a, tenant, nil), ""),
	)
}

func replayIsFree(ctx context.Context, g, _ *guard.Guard) error {
	three := guard.Limit{Rate: 1, Burst: 3}
	admit := func(id string) error { return g.Admit(ctx, tenant, caller, 1, three, use("i", "k", id)...) }
	return errors.Join(
		expect("a use", admit("first"), ""),
		expect("its replay", admit("first"), delegation.AssertionReplayed),
		expect("another replay", admit("first"), delegation.AssertionReplayed),
		expect("a second use", admit("second"), ""),
		expect("a third use", admit("third"), ""),
		expect("a fourth use", admit("fourth"), delegation.RateLimited),
	)
}

func oneWinner(ctx context.Context, a, b *guard.Guard) error {
	same := use("https://issuer.example", "key", "raced")
	var wins atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		g := []*guard.Guard{a, b}[i%2]
		wg.Go(func() {
			if note(ctx, g, tenant, same) == nil {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if n := wins.Load(); n != 1 {
		return fmt.Errorf("%d of 40 won", n)
	}
	return nil
}

func separateUses(ctx context.Context, g, _ *guard.Guard) error {
	var errs []error
	for _, u := range [][]guard.Use{use("ab", "c", "d"), use("a", "bc", "d"), use("a", "b", "cd"), use("", "abc", "d"), use("ab", "cd", "")} {
		errs = append(errs, expect(fmt.Sprintf("%q", u[0]), note(ctx, g, tenant, u), ""))
	}
	errs = append(errs, expect("in another tenant", note(ctx, g, "globex", use("ab", "c", "d")), ""))
	return errors.Join(errs...)
}

func expiredUse(ctx context.Context, g, _ *guard.Guard) error {
	old := guard.Use{Issuer: "i", Key: "k", ID: "old", Until: time.Now().Add(-time.Second)}
	never := guard.Use{Issuer: "i", Key: "k", ID: "never"}
	return errors.Join(
		expect("expired", note(ctx, g, tenant, []guard.Use{old}), delegation.ClientUnauthenticated),
		expect("without an end", note(ctx, g, tenant, []guard.Use{never}), delegation.ClientUnauthenticated),
	)
}

// forgottenUse uses what another request used before, after the time of the first.
func forgottenUse(ctx context.Context, a, b *guard.Guard) error {
	first := guard.Use{Issuer: "i", Key: "k", ID: "short", Until: time.Now().Add(300 * time.Millisecond)}
	if err := expect("the first use", note(ctx, a, tenant, []guard.Use{first}), ""); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := note(ctx, b, tenant, use("i", "k", "short"))
		if err == nil {
			return expect("its replay", note(ctx, a, tenant, use("i", "k", "short")), delegation.AssertionReplayed)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it is still remembered: %w", err)
		}
		<-time.After(5 * time.Millisecond)
	}
}
