// Package guardtest is the conformance suite of guard: whatever serves as Deputy's Redis passes it.
// Each check is a function that returns what it found, so that guard's own tests can also show
// that it fails when the protection is gone.
package guardtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// Check is one thing that must hold for two Guards, as two instances have them, on one empty Redis.
type Check struct {
	Name string
	Run  func(ctx context.Context, a, b *guard.Guard, client redis.UniversalClient) error
}

// Checks is the suite.
var Checks = slices.Concat(requestChecks, nonceChecks, listChecks, []Check{{"what is remembered of a ledger", witness}})

var requestChecks = []Check{
	{"a burst passes, then the rate", burstThenRate},
	{"a cost is taken whole or not at all", costIsWhole},
	{"a cost beyond the burst is told apart", costBeyondBurst},
	{"a limit that is not one admits nothing", emptyLimit},
	{"callers and tenants have buckets of their own", separateBuckets},
	{"two instances share a bucket", sharedBucket},
	{"a lowered limit takes effect", loweredLimit},
	{"a replay is refused by every instance", replayRefused},
	{"one of many simultaneous uses wins", oneWinner},
	{"a replay takes nothing of the rate", replayIsFree},
	{"uses that only look alike are different", separateUses},
	{"what has expired is refused", expiredUse},
	{"a lost script is loaded again", lostScript},
	{"a foreign value under our key admits nothing", foreignValue},
	{"every key belongs to its tenant and expires", keysExpire},
}

// Run runs the suite, each check on the client that newClient gives: of an empty Redis, made with
// guard.Dial or like it.
func Run(t *testing.T, newClient func(t *testing.T) redis.UniversalClient) {
	for _, c := range Checks {
		t.Run(c.Name, func(t *testing.T) {
			client := newClient(t)
			a, b := guard.New(guard.Config{Client: client}), guard.New(guard.Config{Client: client})
			if err := c.Run(t.Context(), a, b, client); err != nil {
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

func burstThenRate(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
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

func costIsWhole(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	limit := guard.Limit{Rate: 1, Burst: 10}
	return errors.Join(
		expect("6 of 10", g.Admit(ctx, tenant, caller, 6, limit), ""),
		expect("6 of the remaining 4", g.Admit(ctx, tenant, caller, 6, limit), delegation.RateLimited),
		expect("4 of the remaining 4", g.Admit(ctx, tenant, caller, 4, limit), ""),
		expect("one more", g.Admit(ctx, tenant, caller, 1, limit), delegation.RateLimited),
	)
}

func costBeyondBurst(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	return expect("11 of 10", g.Admit(ctx, tenant, caller, 11, guard.Limit{Rate: 1, Burst: 10}), delegation.RequestTooLarge)
}

func emptyLimit(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	return errors.Join(
		expect("no limit", g.Admit(ctx, tenant, caller, 1, guard.Limit{}), delegation.Internal),
		expect("a negative rate", g.Admit(ctx, tenant, caller, 1, guard.Limit{Rate: -1, Burst: 1}), delegation.Internal),
		expect("a cost of 0", g.Admit(ctx, tenant, caller, 0, guard.Limit{Rate: 1, Burst: 1}), delegation.Internal),
		expect("a negative cost", g.Admit(ctx, tenant, caller, -1, guard.Limit{Rate: 1, Burst: 1}), delegation.Internal),
	)
}

func separateBuckets(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	one := guard.Limit{Rate: 1, Burst: 1}
	return errors.Join(
		expect("the caller", g.Admit(ctx, tenant, caller, 1, one), ""),
		expect("another caller", g.Admit(ctx, tenant, "agent:researcher", 1, one), ""),
		expect("the caller's name in another tenant", g.Admit(ctx, "globex", caller, 1, one), ""),
		expect("the caller again", g.Admit(ctx, tenant, caller, 1, one), delegation.RateLimited),
	)
}

func sharedBucket(ctx context.Context, a, b *guard.Guard, _ redis.UniversalClient) error {
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

func loweredLimit(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
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

// note lets a caller without a rate limit use something.
func note(ctx context.Context, g *guard.Guard, tenant string, uses []guard.Use) error {
	return g.Admit(ctx, tenant, "agent:noted", 1, guard.Limit{Rate: 1e6, Burst: 1e6}, uses...)
}

func replayRefused(ctx context.Context, a, b *guard.Guard, _ redis.UniversalClient) error {
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

func replayIsFree(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
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

func oneWinner(ctx context.Context, a, b *guard.Guard, _ redis.UniversalClient) error {
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

func separateUses(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	var errs []error
	for _, u := range [][]guard.Use{use("ab", "c", "d"), use("a", "bc", "d"), use("a", "b", "cd"), use("", "abc", "d"), use("ab", "cd", "")} {
		errs = append(errs, expect(fmt.Sprintf("%q", u[0]), note(ctx, g, tenant, u), ""))
	}
	errs = append(errs, expect("in another tenant", note(ctx, g, "globex", use("ab", "c", "d")), ""))
	return errors.Join(errs...)
}

func expiredUse(ctx context.Context, g, _ *guard.Guard, _ redis.UniversalClient) error {
	old := guard.Use{Issuer: "i", Key: "k", ID: "old", Until: time.Now().Add(-time.Second)}
	never := guard.Use{Issuer: "i", Key: "k", ID: "never"}
	return errors.Join(
		expect("expired", note(ctx, g, tenant, []guard.Use{old}), delegation.ClientUnauthenticated),
		expect("without an end", note(ctx, g, tenant, []guard.Use{never}), delegation.ClientUnauthenticated),
	)
}

func lostScript(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	two := guard.Limit{Rate: 1, Burst: 2}
	return errors.Join(
		expect("before", g.Admit(ctx, tenant, caller, 1, two), ""),
		client.ScriptFlush(ctx).Err(),
		expect("after", g.Admit(ctx, tenant, caller, 1, two), ""),
		expect("the bucket is still known", g.Admit(ctx, tenant, caller, 1, two), delegation.RateLimited),
	)
}

func foreignValue(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	one := guard.Limit{Rate: 1, Burst: 1}
	seen := use("i", "k", "id")
	if err := g.Admit(ctx, tenant, caller, 1, one, seen...); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "*").Result()
	if err != nil || len(keys) != 2 {
		return fmt.Errorf("keys %q: %w", keys, err)
	}
	for _, k := range keys {
		if err := errors.Join(client.Del(ctx, k).Err(), client.LPush(ctx, k, "foreign").Err()); err != nil {
			return err
		}
	}
	return errors.Join(
		expect("a list where the rate is", g.Admit(ctx, tenant, caller, 1, one), delegation.DependencyDown),
		expect("a list where the replay is", note(ctx, g, tenant, seen), delegation.AssertionReplayed),
	)
}

func keysExpire(ctx context.Context, g, _ *guard.Guard, client redis.UniversalClient) error {
	limit := guard.Limit{Rate: 2, Burst: 100}
	if err := g.Admit(ctx, tenant, caller, 50, limit, use("i", "k", "id")...); err != nil {
		return err
	}
	keys, err := client.Keys(ctx, "*").Result()
	if err != nil {
		return err
	}
	for _, want := range []struct {
		prefix string
		ttl    time.Duration
	}{{"{acme}:rate:", 25 * time.Second}, {"{acme}:replay:", time.Minute}} {
		i := slices.IndexFunc(keys, func(k string) bool { return strings.HasPrefix(k, want.prefix) })
		if i < 0 || len(keys) != 2 {
			return fmt.Errorf("keys %q, want two, and one that starts with %s", keys, want.prefix)
		}
		ttl, err := client.PTTL(ctx, keys[i]).Result()
		if err != nil {
			return err
		}
		if ttl <= want.ttl-10*time.Second || ttl > want.ttl {
			return fmt.Errorf("key %s lives for %v, want %v", keys[i], ttl, want.ttl)
		}
	}
	return nil
}
