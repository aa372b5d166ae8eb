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
)

// Follow keeps every tenant's revocations current until ctx ends: it reads on from the ledger, at
// once when Redis wakes it, and it keeps the lists in Redis saying what the ledger says. Redis is
// written from the ledger and never believed. Follow returns nil when ctx ends.
func (e *Engine) Follow(ctx context.Context) error {
	var all sync.WaitGroup
	for _, t := range e.tenants {
		all.Go(func() { (&follower{Engine: e, tenant: t}).run(ctx) })
	}
	all.Wait()
	return nil
}

// follower follows one tenant. It belongs to one goroutine.
type follower struct {
	*Engine
	tenant *Tenant

	audited, shared time.Time
	failing         bool // the last round failed: said once
}

func (f *follower) run(ctx context.Context) {
	wake := f.config.Guard.Wake(ctx, f.tenant.Name)
	tick := time.NewTicker(tailEvery)
	defer tick.Stop()
	for {
		err := f.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != f.failing {
			f.failing = err != nil
			f.config.Logger.WarnContext(ctx, "following revocations", "tenant", f.tenant.Name, "failing", f.failing, "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-tick.C:
		}
	}
}

// round reads the ledger first: what it says must reach the verifiers here even when Redis is down.
func (f *follower) round(ctx context.Context) error {
	ctx, cancel := f.within(ctx)
	defer cancel()
	last, err := f.config.Ledger.LastRevocation(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	return errors.Join(f.publish(ctx, last), f.share(ctx))
}

// publish brings the lists up to the ledger: by the events that are missing where that is enough, as
// a whole where it is not.
func (f *follower) publish(ctx context.Context, last uint64) error {
	head, err := f.config.Guard.PublishedHead(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	if head > last {
		// The ledger was restored from a backup, or Redis belongs to another deployment. Neither may be
		// mended by a guess: revocations that somebody was told of may be missing here.
		f.ahead.Store(f.tenant.Name, fmt.Errorf("redis knows revocation %d, the ledger only %d", head, last))
		return nil
	}
	f.ahead.Delete(f.tenant.Name)
	now := f.config.Now()
	if now.Sub(f.audited) >= auditEvery {
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

// Ready says whether Redis and the ledger belong together. Where Redis knows revocations that the
// ledger does not, an operator must decide which of them is right.
func (e *Engine) Ready(context.Context) error {
	var all []error
	e.ahead.Range(func(tenant, err any) bool {
		all = append(all, fmt.Errorf("tenant %v: %w", tenant, err.(error)))
		return true
	})
	if len(all) > 0 {
		return delegation.Unavailable("revocations", errors.Join(all...))
	}
	return nil
}
