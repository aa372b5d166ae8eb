package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// The pace of following. A revocation of another instance is known here within tailEvery even if
// Redis says nothing; the lists in Redis are right again within auditEvery whatever happened to them.
const (
	tailEvery    = 250 * time.Millisecond
	receiptEvery = time.Second
	auditEvery   = 3 * time.Second
	keepPatience = 30 * time.Second // for one round with Redis: a million revocations take five
)

// Follow keeps every tenant's revocations current until ctx ends: it reads on from the ledger, at
// once when Redis wakes it, and it keeps the lists in Redis saying what the ledger says. Redis is
// written from the ledger and never believed. Follow returns nil when ctx ends.
func (e *Engine) Follow(ctx context.Context) error {
	var all sync.WaitGroup
	for _, t := range e.tenants {
		// Two loops: lists that take seconds to be made anew, or a Redis that hangs, hold up nobody who
		// listens for what the ledger says.
		tail, lists := &follower{Engine: e, tenant: t}, &follower{Engine: e, tenant: t}
		all.Go(func() { tail.run(ctx, "reading on from the ledger", e.config.Guard.Wake(ctx, t.Name), tail.read) })
		all.Go(func() { lists.run(ctx, "keeping the lists in Redis", nil, lists.keep) })
	}
	all.Wait()
	return nil
}

// follower does one thing for one tenant, again and again. It belongs to one goroutine.
type follower struct {
	*Engine
	tenant *Tenant

	audited, shared time.Time
	failing         bool // the last round failed: said once
}

func (f *follower) run(ctx context.Context, what string, wake <-chan struct{}, round func(context.Context) error) {
	tick := time.NewTicker(tailEvery)
	defer tick.Stop()
	for {
		err := round(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != f.failing {
			f.failing = err != nil
			f.config.Logger.WarnContext(ctx, what, "tenant", f.tenant.Name, "failing", f.failing, "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
	}
}

// read brings the memory, and with it everybody who watches, up to the ledger.
func (f *follower) read(ctx context.Context) error {
	ctx, cancel := f.within(ctx)
	defer cancel()
	_, err := f.config.Ledger.LastRevocation(ctx, f.tenant.Name)
	return err
}

// keep brings Redis up to the ledger, and shares the receipts.
func (f *follower) keep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	return errors.Join(f.publish(ctx), f.share(ctx))
}

// publish brings the lists up to the ledger: by the events that are missing where that is enough, as
// a whole where it is not.
func (f *follower) publish(ctx context.Context) error {
	head, err := f.config.Guard.PublishedHead(ctx, f.tenant.Name)
	if errors.Is(err, guard.ErrGap) { // something else is in the place of the lists
		return f.republish(ctx)
	}
	if err != nil {
		return err
	}
	// Read after the head: what another instance published meanwhile was in the ledger before.
	last, err := f.config.Ledger.LastRevocation(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	if head > last {
		// The ledger was restored from a backup, or Redis belongs to another deployment. Neither may be
		// mended by a guess: revocations that somebody was told of may be missing here.
		f.compared.Store(f.tenant.Name, fmt.Errorf("redis knows revocation %d, the ledger only %d", head, last))
		return nil
	}
	f.compared.Store(f.tenant.Name, nil)
	if now := f.config.Now(); now.Sub(f.audited) >= auditEvery {
		if err := f.audit(ctx); err != nil {
			return err
		}
		f.audited = now
		return nil
	}
	if head == last {
		return nil
	}
	events, complete, _ := f.config.Ledger.Events(f.tenant.Name, head)
	if !complete {
		return f.republish(ctx)
	}
	for _, r := range events {
		if err := f.config.Guard.Publish(ctx, f.tenant.Name, r); errors.Is(err, guard.ErrGap) {
			return f.republish(ctx)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) audit(ctx context.Context) error {
	live, last, err := f.config.Ledger.Live(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	right, err := f.config.Guard.Audit(ctx, f.tenant.Name, live, last)
	if err != nil || right {
		return err
	}
	return f.config.Guard.Republish(ctx, f.tenant.Name, live, last)
}

func (f *follower) republish(ctx context.Context) error {
	live, last, err := f.config.Ledger.Live(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	return f.config.Guard.Republish(ctx, f.tenant.Name, live, last)
}

func (f *follower) share(ctx context.Context) error {
	now := f.config.Now()
	if now.Sub(f.shared) < receiptEvery {
		return nil
	}
	f.shared = now
	if fresh := f.receipts.take(f.tenant.Name); len(fresh) > 0 {
		return f.config.Guard.Saw(ctx, f.tenant.Name, fresh)
	}
	return nil
}

// Ready says whether Redis and the ledger belong together for one tenant; until they have been
// compared for the first time, they do not. Where Redis knows revocations that the ledger does not,
// an operator must decide which of them is right.
func (e *Engine) Ready(_ context.Context, tenant string) error {
	result, done := e.compared.Load(tenant)
	if !done {
		result = errors.New("the lists in redis have not been compared with the ledger")
	}
	if err, wrong := result.(error); wrong {
		return delegation.Unavailable("revocations", err)
	}
	return nil
}
