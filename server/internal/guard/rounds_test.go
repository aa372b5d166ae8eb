package guard_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/testservers"
)

// gate lets rounds pass one by one, and reports how many questions are in each.
type gate struct {
	came chan int
	pass chan struct{}
}

func (gate) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (g gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() != "evalsha" { // what a connection begins with
			return next(ctx, cmds)
		}
		g.came <- len(cmds)
		<-g.pass
		return next(ctx, cmds)
	}
}

// A call that comes during a round shares the next, gets a result of its own, and is charged only if its caller waits.
func TestRounds(t *testing.T) {
	client := dial(t, testservers.Redis(t))
	g := guard.New(guard.Config{Client: client, Timeout: 10 * time.Second})
	once := guard.Limit{Rate: 1, Burst: 1}
	admit := func(ctx context.Context, caller string) error {
		return g.Admit(ctx, "acme", delegation.Principal("agent:"+caller), 1, once)
	}
	if err := admit(t.Context(), "spent"); err != nil {
		t.Fatal(err)
	}
	rounds := gate{make(chan int), make(chan struct{})}
	client.AddHook(rounds)

	var all sync.WaitGroup
	all.Go(func() {
		if err := admit(t.Context(), "first"); err != nil {
			t.Error(err)
		}
	})
	if n := <-rounds.came; n != 1 {
		t.Errorf("a call that comes alone shares a round with %d", n)
	}
	const others = 20
	for i := range others {
		all.Go(func() {
			if err := admit(t.Context(), fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Go(func() {
		if e := delegation.AsError(admit(t.Context(), "spent")); e == nil || e.Reason != delegation.RateLimited {
			t.Errorf("a caller that has used up its rate: %v", e)
		}
	})
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- admit(ctx, "leaving") }()
	for g.Waiting() < others+2 {
		<-time.After(time.Millisecond)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: %v", err)
	}
	rounds.pass <- struct{}{}
	if n := <-rounds.came; n != others+1 {
		t.Errorf("%d share the second round, want %d", n, others+1)
	}
	rounds.pass <- struct{}{}
	all.Wait()
	go func() { <-rounds.came; rounds.pass <- struct{}{} }()
	if err := admit(t.Context(), "leaving"); err != nil {
		t.Errorf("a caller that left was charged: %v", err)
	}
}
