package exchange

import (
	"context"
	"time"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

const (
	tailPage     = 200
	tailPatience = 8 * time.Second  // without news: a response is sent at least every ten seconds
	tailRecheck  = 30 * time.Second // a caller that may no longer read stops within a minute
)

// Tail is an auditor's view of all entries as they are recorded. It belongs to one goroutine.
type Tail struct {
	head    uint64
	engine  *Engine
	inquiry Inquiry
	by      inquirer
	sight   sight
	checked time.Time
	until   time.Time
	leave   func()
}

// Tail opens a tail for an auditor. It takes one of the instance's places, which Close gives back.
// The error is RateLimited if the tenant or the caller has no place left.
func (e *Engine) Tail(ctx context.Context, q Inquiry) (*Tail, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	by, err := e.admitReader(ctx, q)
	if err != nil {
		return nil, err
	}
	now := e.config.Now()
	t := &Tail{engine: e, inquiry: q, by: by, until: now.Add(watchLife)}
	if err := t.mayStill(ctx, now); err != nil {
		return nil, err
	}
	if t.head, _, err = e.config.Ledger.Tree(ctx, by.tenant.Name); err != nil {
		return nil, delegation.AsError(err)
	}
	t.leave, err = e.tails.enter(by.tenant.Name, by.caller.Principal)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Close gives the tail's place back. A second call does nothing.
func (t *Tail) Close() { t.leave() }

// Head is the number of the newest entry when the tail was opened.
func (t *Tail) Head() uint64 { return t.head }

// Dropped is the beginning of the log that was dropped for its age, if there is one. Next begins
// after it.
func (t *Tail) Dropped(ctx context.Context) (audit.Dropped, bool, error) {
	ctx, cancel := t.engine.within(ctx)
	defer cancel()
	return t.engine.config.Ledger.Dropped(ctx, t.by.tenant.Name)
}

// Next returns entries with numbers above after, in order. It returns none after some seconds
// without a new entry. The error is ClientUnauthenticated when the tail's lifetime (watchLife) is
// over, and NotFound soon after the caller is no auditor any more.
func (t *Tail) Next(ctx context.Context, after uint64) ([]Recorded, error) {
	patience := time.NewTimer(tailPatience)
	defer patience.Stop()
	poll := time.NewTicker(tailEvery)
	defer poll.Stop()
	for {
		page, err := t.page(ctx, after)
		if err != nil || len(page) > 0 {
			return page, err
		}
		select {
		case <-poll.C:
		case <-patience.C:
			return nil, nil
		case <-ctx.Done():
			return nil, delegation.Unavailable("ledger", ctx.Err())
		}
	}
}

func (t *Tail) page(ctx context.Context, after uint64) ([]Recorded, error) {
	ctx, cancel := t.engine.within(ctx)
	defer cancel()
	now := t.engine.config.Now()
	if !now.Before(t.until) {
		return nil, delegation.Refuse(delegation.ClientUnauthenticated, "", "the credential has been used for as long as one may be: come back with a fresh one")
	}
	if now.Sub(t.checked) >= tailRecheck {
		if err := t.standing(ctx); err != nil {
			return nil, err
		}
		if err := t.mayStill(ctx, now); err != nil {
			return nil, err
		}
	}
	entries, err := t.engine.config.Ledger.Entries(ctx, t.by.tenant.Name, after, tailPage)
	if err != nil {
		return nil, delegation.AsError(err)
	}
	return t.engine.show(ctx, t.by, t.sight, entries...)
}

// standing checks whether the caller was revoked meanwhile, and whether a person's session is over.
func (t *Tail) standing(ctx context.Context) (err error) {
	if t.inquiry.Credentials.Person != nil {
		if _, err := t.engine.person(ctx, t.inquiry); err != nil {
			return err
		}
	}
	if t.by.revoked, err = t.engine.config.Ledger.Revocations(ctx, t.by.tenant.Name, true); err != nil {
		return delegation.AsError(err)
	}
	return t.engine.unrevoked(ctx, t.by, t.inquiry)
}

// mayStill checks whether the caller is an auditor.
func (t *Tail) mayStill(ctx context.Context, now time.Time) error {
	sight, err := t.engine.mayRead(ctx, t.by)
	if err != nil {
		return err
	}
	if !sight.whole {
		return t.engine.nothing(ctx, t.by, t.inquiry, sight, "after", "no entries, or none that you may see")
	}
	t.sight, t.checked = sight, now
	return nil
}
