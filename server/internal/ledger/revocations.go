package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
)

// revocations is one tenant's live revocations in memory, as far as this instance has read the
// database. It may be read at any time, because numbers are in the order of commits: a reader that
// sees a revocation sees all before it.
type revocations struct {
	ledger *Ledger
	tenant string
	set    atomic.Pointer[delegation.RevocationSet]
	readAt atomic.Int64         // ledger time of the last read, microseconds
	pruned atomic.Int64         // heads.pruned_through at the last read, microseconds
	feed   atomic.Pointer[feed] // what set was made from; only advance and forgetExpired replace it

	head    atomic.Uint64 // highest number of an entry that any read saw
	retired atomic.Bool   // its incarnation was given up

	mu       sync.Mutex // guards what follows and the replacing of set and feed; never held over I/O
	forgotAt time.Time  // when revocations that had ended were last forgotten
	read     *read      // being read now, or nil
	next     *read      // starts when read ends, or nil
}

// read is one query that several callers share.
type read struct {
	done chan struct{}
	err  error
}

func newRevocations(l *Ledger, tenant string) *revocations {
	r := &revocations{ledger: l, tenant: tenant}
	r.set.Store(delegation.NewRevocationSet(l.Skew(tenant)))
	r.feed.Store(&feed{changed: make(chan struct{})})
	return r
}

// Revocations returns the tenant's live revocations. The set changes as revocations arrive, and is
// replaced when it may have lost one: only query it, and get it again for every call. With fresh,
// it holds every revocation that was committed before the call, on any instance. Without, it holds
// what this instance has read so far. If the database does not answer, the error is unavailable: no
// caller may conclude that nothing was revoked.
func (l *Ledger) Revocations(ctx context.Context, tenant string, fresh bool) (*delegation.RevocationSet, error) {
	s, err := l.sequencer(tenant)
	if err != nil {
		return nil, unavailable(err)
	}
	if !fresh && s.live.feed.Load().loaded {
		return s.live.set.Load(), nil
	}
	if err := s.live.refresh(ctx); err != nil {
		return nil, unavailable(err)
	}
	return s.live.set.Load(), nil
}

// refresh waits for a read that began after the call. Callers that arrive during one read share the
// next.
func (r *revocations) refresh(ctx context.Context) error {
	mine, err := r.join()
	if err != nil {
		return err
	}
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *revocations) join() (*read, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &read{done: make(chan struct{})}
	}
	mine := r.next
	if r.read == nil {
		if !r.ledger.spawn(r.reads) {
			r.next = nil
			return nil, errClosed
		}
		r.read, r.next = mine, nil
	}
	return mine, nil
}

// reads runs one read after the other while callers wait.
func (r *revocations) reads() {
	r.mu.Lock()
	current := r.read
	r.mu.Unlock()
	for current != nil {
		_, of := r.ledger.lifeRow()
		if current.err = r.catchUp(); errors.Is(current.err, ErrDoubt) {
			r.ledger.doubt(context.Background(), of, current.err)
		}
		close(current.done)
		r.mu.Lock()
		current, r.next = r.next, nil
		r.read = current
		r.mu.Unlock()
	}
}

// pageSize is how many revocations the first read takes at a time. A tenant may have so many that
// one statement would not answer in time.
const pageSize = 10_000

// catchUp reads page by page up to the newest revocation. What it has read before a failure is
// kept, and the next try continues from there.
func (r *revocations) catchUp() error {
	if err := r.pages(); err != nil {
		return err
	}
	at := fromMicros(r.readAt.Load())
	if !r.lost(at) {
		r.forgetExpired(at)
		return nil
	}
	return r.rebuild()
}

func (r *revocations) pages() error {
	for {
		whole, err := r.page()
		if whole || err != nil {
			return err
		}
	}
}

// lost reports whether more was forgotten than ledger time justifies, because a clock was wrong.
// The set then refuses what it need not. What the ledger itself pruned does not come back with
// another load.
func (r *revocations) lost(at time.Time) bool {
	horizon := r.set.Load().Horizon()
	return horizon.After(at) && horizon.After(fromMicros(r.pruned.Load())) && r.ledger.Trusted() == nil
}

// rebuild reads everything again and replaces the set that may have lost some. What was also
// dropped from the ledger stays behind the horizon.
func (r *revocations) rebuild() error {
	whole := newRevocations(r.ledger, r.tenant)
	if err := whole.pages(); err != nil {
		return err
	}
	set := whole.set.Load()
	if !set.Horizon().Before(r.set.Load().Horizon()) {
		return nil
	}
	r.ledger.config.Logger.Warn("revocations rebuilt", "tenant", r.tenant, "cause", "a clock was wrong when some were forgotten", "horizon", set.Horizon())
	r.mu.Lock()
	defer r.mu.Unlock()
	// The feed keeps the higher of the two numbers. What the other read has beyond it follows as
	// usual.
	old, read := r.feed.Load(), whole.feed.Load()
	missed := old.live[after(old.live, read.last):]
	set.Apply(missed...)
	next := *old
	next.live = append(slices.Clone(read.live[:after(read.live, old.last)]), missed...)
	next.forgotten = read.forgotten
	r.set.Store(set)
	r.feed.Store(&next)
	return nil
}

func (r *revocations) page() (whole bool, err error) {
	config := r.ledger.config
	ctx, cancel := context.WithTimeout(context.Background(), config.attempt())
	defer cancel()
	known, mine := r.ledger.lifeRow()
	q := r.question(config.Now())
	asked, most := config.Clock.Elapsed(), everything
	if q.revokedUntil != 0 {
		most = pageSize
	}
	found, err := r.ledger.store.query(ctx, r.ledger.store.revocations(), r.tenant, int64(q.revokedAfter), q.revokedUntil, most)
	if err != nil {
		return false, err
	}
	n, err := scanRevocations(found, q.now)
	if err != nil {
		return false, err
	}
	if r.retired.Load() || known && n.found && n.of != mine.Number { // not comparable, so no evidence of a loss
		r.ledger.unproven()
		return false, errRenewed
	}
	if n.head < r.head.Load() {
		return false, errWentBack
	}
	r.head.Store(n.head)
	at, _ := config.Clock.Judge(serverClock, n.server, asked, time.Time{})
	r.readAt.Store(micros(at))
	r.pruned.Store(n.pruned)
	if q.revokedUntil != 0 { // what had ended was left out, or dropped before
		r.forget(fromMicros(max(q.revokedUntil, n.pruned)))
	}
	if int64(len(n.list)) == most {
		r.advance(n.list, false)
		return false, nil
	}
	return true, r.complete(q, n.newest, n.list)
}

// forget records that revocations which ended by then were not read.
func (r *revocations) forget(through time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set.Load().Forget(through)
	next := *r.feed.Load()
	if next.forgotten.Before(through) {
		next.forgotten = through
	}
	r.feed.Store(&next)
}

// question requests what is missing. The first read leaves out what has ended. Later ones take
// everything, because they can be proven complete.
func (r *revocations) question(now time.Time) questions {
	f := r.feed.Load()
	q := questions{revokedAfter: f.last, now: micros(now)}
	if f.loaded {
		return q
	}
	q.revokedUntil = 1             // everything that is left
	if r.ledger.Trusted() == nil { // a wrong clock costs another load: see lost
		q.revokedUntil = max(micros(now.Add(-margin)), 1)
	}
	return q
}

// complete applies the answer, if it leads without a gap to the newest number.
func (r *revocations) complete(q questions, newest uint64, list []delegation.Revocation) error {
	if newest < q.revokedAfter {
		return errWentBack
	}
	after := q.revokedAfter
	for _, v := range list {
		if q.revokedUntil == 0 && v.Prev != after {
			return fmt.Errorf("revocation %d follows %d, but %d was the last one seen: the ledger has a gap", v.Seq, v.Prev, after)
		}
		after = v.Seq
	}
	if after != newest {
		return fmt.Errorf("the newest revocation should be %d, but %d is: the ledger has a gap", newest, after)
	}
	r.advance(list, true)
	return nil
}
