package ledger

import (
	"context"
	"slices"
	"sort"
	"time"

	"deputy.example/deputy/client/delegation"
)

// feed is the revocations that a tenant's set was made from, in order. A feed never changes;
// another one replaces it, so readers need no lock.
//
// Both slices share their arrays with earlier feeds, which end earlier.
type feed struct {
	loaded bool                    // live holds everything that was live at the first read
	last   uint64                  // number of the newest revocation
	live   []delegation.Revocation // all that has not ended, and what ended since the last forgetExpired
	recent []delegation.Revocation // the newest, ended or not; the prev of each is the one before it
	before uint64                  // prev of the first of recent; last if there is none
	// forgotten is a time: revocations that ended by then may be missing from live. Zero: none is
	// missing.
	forgotten time.Time
	changed   chan struct{} // closed when this feed is replaced by a longer one
}

const (
	// mostRecent is how many revocations a verifier may have missed and still receive one by one.
	// The memory holds up to twice as many.
	mostRecent = 1 << 16
	// forgetEvery is the pace at which revocations that have ended are forgotten. It takes time in
	// proportion to all live ones. A revocation that has ended does no harm, because nothing that
	// it hits is live.
	forgetEvery = 30 * time.Second
)

// advance takes committed revocations, in order, and skips those that it has. With whole, they lead
// up to the newest one at the time of their read.
func (r *revocations) advance(list []delegation.Revocation, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.feed.Load()
	list = list[after(list, old.last):]
	if len(list) == 0 && (old.loaded || !whole) {
		return
	}
	r.set.Load().Apply(list...) // first: a verifier that receives a revocation finds it in force
	next := &feed{
		loaded: old.loaded || whole, last: old.last, before: old.before,
		live: append(old.live, list...), recent: old.recent, forgotten: old.forgotten, changed: make(chan struct{}),
	}
	next.follow(list)
	r.feed.Store(next)
	close(old.changed)
}

// retire wakes all waiting readers, which then find a tenant that is not loaded.
func (r *revocations) retire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retired.Store(true)
	old := r.feed.Load()
	r.feed.Store(&feed{changed: make(chan struct{})})
	close(old.changed)
}

// follow appends to recent, and starts recent again where one is missing: the first read leaves out
// revocations that have ended.
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

// forgetExpired forgets, from time to time, the revocations that have ended by ledger time.
func (r *revocations) forgetExpired(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if since := at.Sub(r.forgotAt); since >= 0 && since < forgetEvery {
		return
	}
	if r.forgotAt.IsZero() { // just read, without those that had ended
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
	next := *old // with the same changed: waiting readers need not wake
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

// Events returns the tenant's revocations with numbers above seq that this instance has read, in
// order, each following the one before it. complete is false if it cannot: the tenant is not
// loaded, the memory does not reach back that far, or seq is not a number that this instance has
// read (yet). Live then has the answer. changed is closed when there are more, also after complete
// was false; all waiting callers share it.
//
// It answers from memory and does not wait. The events are shared with other callers and must not
// be changed. A closed ledger returns zero values.
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

// Live returns all live revocations of the tenant in order, and the number up to which they are
// complete. Some may have ended within the last minute. They come from memory that was brought up
// to date after the call began, so they include every revocation that was committed before the
// call. The slice is shared with other callers and must not be changed.
func (l *Ledger) Live(ctx context.Context, tenant string) (live []delegation.Revocation, last uint64, err error) {
	live, last, _, err = l.Snapshot(ctx, tenant)
	return live, last, err
}

// Snapshot is Live, with the time up to which revocations that have ended may be missing. Zero:
// none is missing.
func (l *Ledger) Snapshot(ctx context.Context, tenant string) (live []delegation.Revocation, last uint64, forgotten time.Time, err error) {
	f, err := l.upToDate(ctx, tenant)
	if err != nil {
		return nil, 0, time.Time{}, err
	}
	return slices.Clip(f.live), f.last, f.forgotten, nil
}

// Newest is LastRevocation with the ledger's time at that read, which is PostgreSQL's while this
// instance's clock agrees with it.
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
// read of the database that began after the call. Concurrent calls share a read. Set and events are
// up to date when it returns.
func (l *Ledger) LastRevocation(ctx context.Context, tenant string) (uint64, error) {
	f, err := l.upToDate(ctx, tenant)
	if err != nil {
		return 0, err
	}
	return f.last, nil
}

// Skew is the tenant's value in Config.Skews, or the default.
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
