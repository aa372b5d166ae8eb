package ledger

import (
	"context"
	"slices"
	"sort"
	"time"

	"deputy.example/deputy/client/delegation"
)

// feed is the revocations that a tenant's set was made from, in order. A feed never changes: it is
// replaced by another one, so whoever reads it needs no lock and holds nobody up.
//
// Both slices share their arrays with the feeds before them, which end earlier.
type feed struct {
	loaded bool                    // live holds everything that was live at the first read
	last   uint64                  // number of the newest revocation
	live   []delegation.Revocation // all that has not ended, and what ended since the last sweep
	recent []delegation.Revocation // the newest, ended or not: each one's prev is the one before it
	before uint64                  // prev of the first of recent; last if there is none
	// forgotten is a time: what ended by then may be missing from live. Zero: nothing is.
	forgotten time.Time
	changed   chan struct{} // closed when this feed is replaced by a longer one
}

const (
	// mostRecent is how many revocations a watcher may have missed and still be told them one by one.
	// Up to twice as many are kept.
	mostRecent = 1 << 16
	// forgetEvery is how often what has ended is forgotten. It takes time in proportion to all that
	// is live; to be hit by what has ended harms nobody, because nothing that it hits is alive.
	forgetEvery = 30 * time.Second
)

// advance takes revocations that are committed, in order, and passes over those that it has. With
// whole, they lead up to what was the newest at the time they were read.
func (r *revocations) advance(list []delegation.Revocation, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.feed.Load()
	list = list[after(list, old.last):]
	if len(list) == 0 && (old.loaded || !whole) {
		return
	}
	r.set.Load().Apply(list...) // first: a watcher that receives a revocation finds it in force
	next := &feed{
		loaded: old.loaded || whole, last: old.last, before: old.before,
		live: append(old.live, list...), recent: old.recent, forgotten: old.forgotten, changed: make(chan struct{}),
	}
	next.follow(list)
	r.feed.Store(next)
	close(old.changed)
}

// retire wakes all who wait, who then find a tenant that was not loaded yet.
func (r *revocations) retire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retired.Store(true)
	old := r.feed.Load()
	r.feed.Store(&feed{changed: make(chan struct{})})
	close(old.changed)
}

// follow appends to recent, and begins anew where something is missing: the first read leaves out
// what has ended.
func (f *feed) follow(list []delegation.Revocation) {
	begin := 0
	for i, v := range list {
		if v.Prev != f.last {
			begin, f.recent, f.before = i, nil, v.Prev
		}
		f.last = v.Seq
	}
	f.recent = append(f.recent, list[begin:]...)
	if n := len(f.recent); n > 2*mostRecent {
		f.recent = slices.Clone(f.recent[n-mostRecent:])
		f.before = f.recent[0].Prev
	}
}

// forgetExpired forgets what has ended by ledger time, now and then.
func (r *revocations) forgetExpired(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if since := at.Sub(r.forgotAt); since >= 0 && since < forgetEvery {
		return
	}
	if r.forgotAt.IsZero() { // just read, without what had ended
		r.forgotAt = at
		return
	}
	end, certain := r.ledger.forgettable(at)
	if !certain {
		return
	}
	r.forgotAt = at
	r.set.Load().Expire(end)
	old := r.feed.Load()
	live := func(v delegation.Revocation) bool { return v.Until.IsZero() || v.Until.After(end) }
	n := 0
	for _, v := range old.live {
		if live(v) {
			n++
		}
	}
	if n == len(old.live) {
		return
	}
	next := *old // with its changed: nobody who waits for more has to look
	next.forgotten = end
	next.live = make([]delegation.Revocation, 0, n)
	for _, v := range old.live {
		if live(v) {
			next.live = append(next.live, v)
		}
	}
	r.feed.Store(&next)
}

// after is the index of the first revocation with a higher number.
func after(list []delegation.Revocation, seq uint64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].Seq > seq })
}

// Events returns the tenant's revocations with numbers above after, in order and each following the
// one before it, as far as this instance has seen them. complete is false if it cannot: the tenant
// was not loaded yet, the memory does not reach back that far, or after is no number that this
// instance knows, which may also be one it has not seen yet. Then Live has the answer. changed is
// closed when there is more, also after complete was false; all who wait share it.
//
// It answers from memory, without waiting for anybody. The events are shared with other callers and
// must not be changed. From a closed ledger everything is zero.
func (l *Ledger) Events(tenant string, seq uint64) (events []delegation.Revocation, complete bool, changed <-chan struct{}) {
	s, err := l.sequencer(tenant)
	if err != nil {
		return nil, false, nil
	}
	f := s.live.feed.Load()
	i := after(f.recent, seq)
	known := f.before
	if i > 0 {
		known = f.recent[i-1].Seq
	}
	if !f.loaded || known != seq {
		return nil, false, f.changed
	}
	return slices.Clip(f.recent[i:]), true, f.changed
}

// Live returns all of the tenant's live revocations in order, among them possibly some that ended
// within the last minute, and the number up to which they are complete. They were read from memory
// after that was brought up to date: they hold every revocation that was committed before the call.
// The slice is shared with other callers and must not be changed.
func (l *Ledger) Live(ctx context.Context, tenant string) (live []delegation.Revocation, last uint64, err error) {
	live, last, _, err = l.Snapshot(ctx, tenant)
	return live, last, err
}

// Snapshot is Live with the time up to which revocations that have ended may be missing; zero: none is.
func (l *Ledger) Snapshot(ctx context.Context, tenant string) (live []delegation.Revocation, last uint64, forgotten time.Time, err error) {
	f, err := l.upToDate(ctx, tenant)
	if err != nil {
		return nil, 0, time.Time{}, err
	}
	return slices.Clip(f.live), f.last, f.forgotten, nil
}

// Newest is LastRevocation with the ledger's time at that read: that of PostgreSQL's clock while this instance's agrees
// with it.
func (l *Ledger) Newest(ctx context.Context, tenant string) (last uint64, at time.Time, err error) {
	s, err := l.sequencer(tenant)
	if err == nil {
		err = s.live.refresh(ctx)
	}
	if err != nil {
		return 0, time.Time{}, unavailable(err)
	}
	return s.live.feed.Load().last, fromMicros(s.live.readAt.Load()), nil
}

// LastRevocation returns the number of the tenant's newest revocation, 0 if there is none, from a
// read of the database that began after the call; calls at the same time share a read. Set and
// events are up to date when it returns.
func (l *Ledger) LastRevocation(ctx context.Context, tenant string) (uint64, error) {
	f, err := l.upToDate(ctx, tenant)
	if err != nil {
		return 0, err
	}
	return f.last, nil
}

// Skew is the tenant's in Config.Skews, or the default.
func (l *Ledger) Skew(tenant string) time.Duration {
	if skew, configured := l.config.Skews[tenant]; configured {
		return skew
	}
	return defaultSkew
}

const defaultSkew = 30 * time.Second

func (l *Ledger) upToDate(ctx context.Context, tenant string) (*feed, error) {
	s, err := l.sequencer(tenant)
	if err == nil {
		err = s.live.refresh(ctx)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return s.live.feed.Load(), nil
}
