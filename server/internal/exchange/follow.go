package exchange

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// The intervals of Follow. A revocation of another instance is known here within tailEvery, also if
// Redis reports nothing. The lists in Redis are correct again within auditEvery, whatever changed
// them. For lists that are too long for one look, it is auditShare times the time that it takes to
// read them.
const (
	tailEvery    = 250 * time.Millisecond
	receiptEvery = time.Second
	auditEvery   = 3 * time.Second
	auditShare   = 50               // one part in this many of the time reads long lists
	keepPatience = 30 * time.Second // for one round with Redis: a million revocations take five
	mostPeeked   = 100              // tenants whose lists are compared in one round trip
)

// Follow keeps each tenant's revocations current until ctx ends. It reads new revocations from the
// ledger, immediately when Redis wakes it, and it keeps the lists in Redis equal to the ledger. The
// lists in Redis are written from the ledger and are never a source. Follow returns nil when ctx
// ends.
//
// Tenants without news share one query to the ledger and one to Redis. Only tenants with news, or
// with lists that are wrong, are read separately.
func (e *Engine) Follow(ctx context.Context) error {
	var all sync.WaitGroup
	var names []string
	for i := range e.config.Tenants {
		names = append(names, e.config.Tenants[i].Name)
	}
	tails, lists := make(map[string]*follower), make(map[string]*follower)
	for name, t := range e.tenants {
		// Two loops: a rebuild of lists that takes seconds, or a Redis that does not respond, must
		// not delay the reading of the ledger.
		tail, list := newFollower(e, t), newFollower(e, t)
		_, _, list.news = e.config.Ledger.Events(name, 0)
		tails[name], lists[name] = tail, list
		all.Go(func() { tail.run(ctx, "reading on from the ledger", tail.read) })
		all.Go(func() { list.run(ctx, "keeping the lists in Redis", list.keep) })
	}
	wake := e.config.Guard.Wake(ctx, names...)
	look := func(ctx context.Context) error {
		return errors.Join(e.look(ctx, names, tails), e.arbitrate(ctx, names[0]))
	}
	all.Go(func() { e.again(ctx, "looking for news in the ledger", tailEvery, look) })
	all.Go(func() { e.listen(ctx, wake, tails) })
	all.Go(func() { e.again(ctx, "comparing the lists in Redis", tailEvery, e.compareAll(names, lists)) })
	all.Go(func() { e.again(ctx, "sharing receipts", receiptEvery, e.share) })
	all.Wait()
	return nil
}

// again runs rounds for all tenants until ctx ends.
func (e *Engine) again(ctx context.Context, what string, every time.Duration, round func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false // logged once
	for {
		err := round(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != failing {
			failing = err != nil
			e.config.Logger.WarnContext(ctx, what, "failing", failing, "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks the ledger which tenants have revocations that this instance has not read, and starts
// their reading.
func (e *Engine) look(ctx context.Context, names []string, tails map[string]*follower) error {
	standings, err := e.config.Ledger.Progress(ctx, names...)
	for _, s := range standings {
		if !s.Current {
			tails[s.Tenant].nudge()
		}
	}
	return err
}

// listen starts the reading of a tenant as soon as Redis reports news of it. A message with many
// tenants means that the connection to Redis was restored; listen then asks the ledger.
func (e *Engine) listen(ctx context.Context, wake <-chan []string, tails map[string]*follower) {
	for {
		select {
		case <-ctx.Done():
			return
		case names := <-wake:
			if len(names) == 1 {
				tails[names[0]].nudge()
			} else {
				_ = e.look(ctx, names, tails) // the loop of look logs a failure
			}
		}
	}
}

// compareAll compares a part of the lists in Redis with the ledger, so that each list has its turn
// once in auditEvery. In the first round, and in the first round after a failure, it compares all.
// It starts a closer comparison of lists that are wrong.
func (e *Engine) compareAll(names []string, lists map[string]*follower) func(context.Context) error {
	const turns = int(auditEvery / tailEvery)
	turn, doubt := 0, true
	return func(ctx context.Context) error {
		due := names
		if !doubt {
			due = names[len(names)*turn/turns : len(names)*(turn+1)/turns]
			turn = (turn + 1) % turns
		}
		doubt = true
		for some := range slices.Chunk(due, mostPeeked) {
			if err := e.compare(ctx, some, lists); err != nil {
				return err
			}
		}
		doubt = false
		return nil
	}
}

// share sends the receipts of this instance's verifiers to the other instances. If that fails, the
// receipts are dropped, of each tenant: verifiers send them again every second.
func (e *Engine) share(ctx context.Context) error {
	var errs []error
	for _, tenant := range e.receipts.tenants() {
		errs = append(errs, e.config.Guard.Saw(ctx, tenant, e.receipts.take(tenant)))
	}
	return errors.Join(errs...)
}

// follower does one kind of work for one tenant, whenever there is a reason to. It belongs to one
// goroutine.
type follower struct {
	*Engine
	tenant *Tenant
	nudged chan struct{}

	// Of lists. An instance that records a revocation publishes it too. Therefore news is published
	// here a moment later, if that failed, however much news there is.
	news  <-chan struct{} // closed when there are revocations that the lists may lack
	doubt bool            // the lists may be wrong, whatever their head is
	rests time.Time       // until then no full reading, which takes seconds for a million revocations

	failing bool // the last round failed, which is logged once
}

func newFollower(e *Engine, t *Tenant) *follower {
	return &follower{Engine: e, tenant: t, nudged: make(chan struct{}, 1), doubt: true}
}

// nudge starts a round. Any goroutine may call it.
func (f *follower) nudge() {
	select {
	case f.nudged <- struct{}{}:
	default: // a round is due already
	}
}

func (f *follower) run(ctx context.Context, what string, round func(context.Context) error) {
	later := time.NewTimer(tailEvery)
	defer later.Stop()
	later.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.news:
			f.news = nil
			later.Reset(tailEvery)
			continue
		case <-f.nudged:
			f.doubt = true
		case <-later.C:
		}
		err := round(ctx)
		if ctx.Err() != nil {
			return
		}
		if (err != nil) != f.failing {
			f.failing = err != nil
			f.config.Logger.WarnContext(ctx, what, "tenant", f.tenant.Name, "failing", f.failing, "cause", err)
		}
		if later.Stop(); err != nil {
			later.Reset(tailEvery)
		}
	}
}

// read brings the revocations in memory, and with them all watches, up to the ledger.
func (f *follower) read(ctx context.Context) error {
	ctx, cancel := f.within(ctx)
	defer cancel()
	_, err := f.config.Ledger.LastRevocation(ctx, f.tenant.Name)
	return err
}

// keep brings Redis up to the ledger.
func (f *follower) keep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	_, _, f.news = f.config.Ledger.Events(f.tenant.Name, 0)
	return f.publish(ctx)
}

// publish brings the lists up to the ledger: by the missing events if the ledger has them all, else
// by a rebuild.
func (f *follower) publish(ctx context.Context) error {
	head, err := f.config.Guard.PublishedHead(ctx, f.tenant.Name)
	if errors.Is(err, guard.ErrGap) { // another value is in the place of the lists
		return f.republish(ctx, listsDamaged)
	}
	if err != nil {
		return err
	}
	// Read after the head: a revocation that another instance published meanwhile was in the ledger
	// before.
	last, err := f.config.Ledger.LastRevocation(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	if head > last {
		// compare records what that means, and mends nothing.
		return f.compare(ctx, []string{f.tenant.Name}, nil)
	}
	if began := time.Now(); f.doubt && began.After(f.rests) {
		if err := f.audit(ctx, head, last); err != nil {
			return err
		}
		f.doubt, f.rests = false, time.Now().Add(auditShare*time.Since(began))
		return nil
	}
	if head == last {
		return nil
	}
	events, complete, _ := f.config.Ledger.Events(f.tenant.Name, head)
	if !complete {
		return f.republish(ctx, listsOld)
	}
	for _, r := range events {
		if err := f.config.Guard.Publish(ctx, f.tenant.Name, r); errors.Is(err, guard.ErrGap) {
			return f.republish(ctx, listsDamaged)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// The causes of a rebuild of the lists in Redis: labels of deputy_revocation_lists_mended_total.
const (
	listsLost    = "lost"    // there are none
	listsOld     = "old"     // their head is behind the ledger's
	listsDamaged = "damaged" // another value is in their place, or they differ from the ledger
)

// audit compares the lists with the ledger, and rebuilds them if they differ. head and now are the
// numbers of the newest revocation in the lists and in the ledger, read before.
func (f *follower) audit(ctx context.Context, head, now uint64) error {
	live, last, err := f.config.Ledger.Live(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	right, err := f.config.Guard.Audit(ctx, f.tenant.Name, live, last)
	if err != nil || right {
		return err
	}
	cause := listsDamaged
	switch {
	case head == 0:
		cause = listsLost
	case head < now:
		cause = listsOld
	}
	return f.mend(ctx, cause, live, last)
}

func (f *follower) republish(ctx context.Context, cause string) error {
	live, last, err := f.config.Ledger.Live(ctx, f.tenant.Name)
	if err != nil {
		return err
	}
	return f.mend(ctx, cause, live, last)
}

// mend rebuilds the lists and reports it. Until then, readers of the lists did not have all
// revocations.
func (f *follower) mend(ctx context.Context, cause string, live []delegation.Revocation, last uint64) error {
	if err := f.config.Guard.Republish(ctx, f.tenant.Name, live, last); err != nil {
		return err
	}
	if last == 0 {
		return nil // the first lists of a tenant without revocations
	}
	f.metrics.mended.WithLabelValues(f.tenant.Name, cause).Inc()
	f.config.Logger.WarnContext(ctx, "revocation lists in redis mended", "tenant", f.tenant.Name, "cause", cause, "live", len(live), "entry", last)
	return nil
}
