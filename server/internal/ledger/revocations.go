package ledger

import (
	"context"
	"fmt"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

// revocations is one tenant's live revocations in memory. The database is the truth; this is how
// far we have read it. Reading is safe at any time, because numbers are in the order of commits:
// who sees a revocation sees all before it.
type revocations struct {
	ledger *Ledger
	tenant string
	set    *delegation.RevocationSet

	mu     sync.Mutex // guards what follows; never held over I/O
	loaded bool       // set holds everything that was live at the first read
	read   *read      // being read now, or nil
	next   *read      // starts when that ends, or nil
}

// read is one query that several callers share.
type read struct {
	done chan struct{}
	err  error
}

func newRevocations(l *Ledger, tenant string) *revocations {
	return &revocations{ledger: l, tenant: tenant, set: delegation.NewRevocationSet(l.config.Skew)}
}

// Revocations returns the tenant's live revocations, which go on changing as revocations arrive:
// only ask it. With fresh, it holds every revocation that was committed before the call, on
// whichever instance; without, what this instance has seen so far. If the database does not answer,
// the error is unavailable: nobody may conclude that nothing was revoked.
func (l *Ledger) Revocations(ctx context.Context, tenant string, fresh bool) (*delegation.RevocationSet, error) {
	s, err := l.sequencer(tenant)
	if err != nil {
		return nil, unavailable(err)
	}
	if !fresh && s.live.isLoaded() {
		return s.live.set, nil
	}
	if err := s.live.refresh(ctx); err != nil {
		return nil, unavailable(err)
	}
	return s.live.set, nil
}

func (r *revocations) isLoaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
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

// reads does one read after the other until nobody waits.
func (r *revocations) reads() {
	r.mu.Lock()
	current := r.read
	r.mu.Unlock()
	for current != nil {
		current.err = r.catchUp()
		close(current.done)
		r.mu.Lock()
		current, r.next = r.next, nil
		r.read = current
		r.mu.Unlock()
	}
}

func (r *revocations) catchUp() error {
	config := r.ledger.config
	ctx, cancel := context.WithTimeout(context.Background(), config.attempt())
	defer cancel()
	q := r.question(config.Now())
	found, err := r.ledger.store.query(ctx, sqlRevocations, r.tenant, int64(q.revokedAfter), q.revokedUntil)
	if err != nil {
		return err
	}
	newest, list, err := scanRevocations(found)
	if err != nil {
		return err
	}
	return r.complete(q, newest, list)
}

// question asks for what is missing. The first read leaves out what has ended, later ones take all,
// because they can be proven complete.
func (r *revocations) question(now time.Time) questions {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set.Expire(now.Add(-r.ledger.config.Skew))
	q := questions{revokedAfter: r.set.Last(), now: micros(now)}
	if !r.loaded {
		q.revokedUntil = micros(now.Add(-r.ledger.config.Skew))
	}
	return q
}

// complete applies what the question found, if it leads without a gap to the newest number.
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
	r.set.Apply(list...)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = true
	return nil
}
