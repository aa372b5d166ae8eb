package guard_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

// gone answers every command as a Redis that is not there. (A client that dials in vain goes on for a second by itself.)
type gone struct{}

var errGone = errors.New("connection refused")

func (gone) DialHook(next redis.DialHook) redis.DialHook { return next }

func (gone) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error { cmd.SetErr(errGone); return errGone }
}

func (gone) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(_ context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			cmd.SetErr(errGone)
		}
		return errGone
	}
}

// TestLimitedAlone has callers come while Redis is gone: each gets a quarter of its rate, no other notices it, and what is
// remembered of them is bounded in each tenant by itself.
func TestLimitedAlone(t *testing.T) {
	now := time.Unix(1795305600, 0)
	client := dial(t, "127.0.0.1:1")
	client.AddHook(gone{})
	g := guard.New(guard.Config{Client: client, Now: func() time.Time { return now }})
	limit := guard.Limit{Rate: 8, Burst: 12}
	ask := func(tenant string, caller delegation.Principal) *delegation.Error {
		return delegation.AsError(g.AdmitOrLimit(t.Context(), tenant, caller, limit))
	}
	admitted := func(tenant string, caller delegation.Principal) (n int) {
		for {
			refusal := ask(tenant, caller)
			if refusal == nil {
				if n++; n > limit.Burst {
					t.Fatalf("%s: %d calls at once", caller, n)
				}
				continue
			}
			if refusal.Reason != delegation.RateLimited || refusal.RetryAfter <= 0 {
				t.Fatal(refusal)
			}
			return n
		}
	}
	if n := admitted("acme", "agent:a"); n != 3 {
		t.Errorf("%d at once, want a quarter of 12", n)
	}
	if n := admitted("acme", "agent:b"); n != 3 {
		t.Errorf("another caller: %d, want 3", n)
	}
	now = now.Add(time.Second)
	if n := admitted("acme", "agent:a"); n != 2 {
		t.Errorf("%d after a second, want a quarter of 8", n)
	}
	now = now.Add(time.Minute)
	total := 0
	for i := range 2 * guard.MostAlone {
		total += admitted("acme", delegation.Principal(fmt.Sprint("agent:", i)))
	}
	if total != 3*guard.MostAlone {
		t.Errorf("%d callers get %d, want %d", 2*guard.MostAlone, total, 3*guard.MostAlone)
	}
	if refusal := ask("acme", "agent:late"); refusal == nil || refusal.Reason != delegation.RateLimited || refusal.RetryAfter > time.Second {
		t.Errorf("one caller too many: %v", refusal)
	}
	if err := g.LimitUndecided("acme", "agent:late", limit); err != nil {
		t.Errorf("what cannot be decided: %v", err)
	}
	now = now.Add(time.Second)
	if n := admitted("acme", "agent:later"); n != 2 {
		t.Errorf("one caller too many, a second later: %d", n)
	}
	if refusal := ask("other", "agent:late"); refusal != nil {
		t.Errorf("another tenant: %v", refusal)
	}
	now = now.Add(time.Minute) // all of them have their whole burst again
	if refusal := ask("acme", "agent:late"); refusal != nil {
		t.Errorf("when the others have gone: %v", refusal)
	}
	use := guard.Use{Issuer: "i", Key: "k", ID: "1", Until: now.Add(-time.Second)}
	if err := g.AdmitOrLimit(t.Context(), "acme", "agent:late", limit, use); delegation.AsError(err).Reason != delegation.ClientUnauthenticated {
		t.Errorf("what has expired: %v", err)
	}
}

// TestRedisLimitsWhereItAnswers: the own limit is for its absence only.
func TestRedisLimitsWhereItAnswers(t *testing.T) {
	g := guard.New(guard.Config{Client: dial(t, testservers.Redis(t))})
	limit := guard.Limit{Rate: 1, Burst: 12}
	use := guard.Use{Issuer: "i", Key: "k", ID: t.Name(), Until: time.Now().Add(time.Minute)}
	for i := range 2 {
		err := g.AdmitOrLimit(t.Context(), t.Name(), "agent:a", limit, use)
		if refusal := delegation.AsError(err); (refusal == nil) != (i == 0) || refusal != nil && refusal.Reason != delegation.AssertionReplayed {
			t.Errorf("use %d: %v", i, err)
		}
	}
	for i := range 10 {
		if err := g.AdmitOrLimit(t.Context(), t.Name(), "agent:a", limit); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

// TestOwnNonces: those that were shared go on while Redis is gone, and an instance makes its own for what follows.
func TestOwnNonces(t *testing.T) {
	server := testservers.NewRedis(t)
	now := time.Now()
	g := guard.New(guard.Config{Client: dial(t, server.Addr), Now: func() time.Time { return now }})
	ask := func() []string {
		t.Helper()
		known, err := g.NoncesOrOwn(t.Context(), "acme")
		if err != nil || len(known) == 0 {
			t.Fatal(known, err)
		}
		return known
	}
	shared := ask()
	server.Kill()
	if again := ask(); !slices.Equal(again, shared) {
		t.Errorf("without Redis %v, shared %v", again, shared)
	}
	now = now.Add(2 * time.Minute)
	next := ask()
	if len(next) != 2 || next[0] == shared[0] || next[1] != shared[0] {
		t.Errorf("in the next period %v after %v", next, shared)
	}
	if again := ask(); !slices.Equal(again, next) {
		t.Errorf("and again %v", again)
	}
	now = now.Add(10 * time.Minute)
	if late := ask(); len(late) != 1 || slices.Contains(next, late[0]) {
		t.Errorf("long after %v: %v", next, late)
	}
	other, err := g.NoncesOrOwn(t.Context(), "other")
	if err != nil || slices.Contains(ask(), other[0]) {
		t.Errorf("two tenants share %v, %v", other, err)
	}
}
