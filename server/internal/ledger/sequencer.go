package ledger

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"deputy.example/deputy/server/internal/gather"
)

// sequencer commits one tenant's drafts in groups. A batch is everything that was queued while the
// previous one was committed. Its goroutine exists only while there is something to commit.
type sequencer struct {
	ledger *Ledger
	tenant string
	live   *revocations

	statuses *statusLists
	failing  atomic.Bool // the newest batch could not be committed
	retired  atomic.Bool // its incarnation was given up

	mu      sync.Mutex // guards what follows; never held over I/O
	queue   []*item
	running bool

	known memory // the newest durable entry that this process knows

	// What follows belongs to the running turn.
	seen   uint64    // highest number that one of our batches saw
	added  pruning   // since the last pruning
	pruned time.Time // time of the last pruning
	// Below this number there are no claims any more.
	claimsFrom uint64
}

// item is the drafts of one call, or single uses alone, in the queue. It is never split over two
// transactions.
type item struct {
	drafts []*Draft    // none: single uses alone
	uses   []SingleUse // shared by all drafts

	// The turn writes these before it closes done; the caller reads them afterwards.
	results []Result // of each draft; nil if err is set
	err     error
	done    chan struct{}
}

// grace is how long a caller waits after the deadline of a turn that does not end, as on a disk
// that hangs.
const grace = 250 * time.Millisecond

// submit queues the item and waits for its outcome.
func (l *Ledger) submit(ctx context.Context, tenant string, it *item) ([]Result, error) {
	s, err := l.sequencer(tenant)
	if err == nil {
		err = s.enqueue(it)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	deadline := time.NewTimer(l.config.Timeout + grace)
	defer deadline.Stop()
	select {
	case <-it.done:
		return it.results, it.err
	case <-ctx.Done():
		if s.withdraw(it) {
			return nil, unavailable(ctx.Err())
		}
	case <-deadline.C:
		s.withdraw(it)
		return nil, unavailable(errTooLong)
	}
	select {
	case <-it.done:
		return it.results, it.err
	case <-deadline.C:
		return nil, unavailable(errTooLong)
	}
}

var (
	errQueueFull = errors.New("ledger: too many drafts are waiting")
	errTooLong   = errors.New("ledger: the database did not answer in time")
)

func (s *sequencer) enqueue(it *item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) >= s.ledger.config.MaxQueue {
		return errQueueFull
	}
	if !s.running && !s.ledger.spawn(s.turns) {
		return errClosed
	}
	s.running = true
	s.queue = append(s.queue, it)
	s.ledger.metrics.queued.Inc()
	return nil
}

// withdraw removes the item from the queue, unless a batch has taken it.
func (s *sequencer) withdraw(it *item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, it)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	s.ledger.metrics.queued.Dec()
	return true
}

// turns commits batches until nothing is queued.
func (s *sequencer) turns() {
	for last := 0; ; {
		gather.Group(s.ledger.config.MaxBatch, last, s.queued)
		items := s.take()
		if last = len(items); last == 0 {
			return
		}
		s.commit(items)
	}
}

func (s *sequencer) queued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// take removes the next batch from the queue, in order. Revocations go first and alone, so that
// everything that waited beside them is checked against them.
func (s *sequencer) take() []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		s.running = false
		return nil
	}
	most := s.ledger.config.MaxBatch
	var batch, rest []*item
	if slices.ContainsFunc(s.queue, (*item).revokes) {
		for _, it := range s.queue {
			if it.revokes() && len(batch) < most {
				batch = append(batch, it)
			} else {
				rest = append(rest, it)
			}
		}
	} else {
		n := 1 // the first item goes, however large it is
		for drafts := len(s.queue[0].drafts); n < len(s.queue) && drafts < most; n++ {
			drafts += max(1, len(s.queue[n].drafts))
		}
		batch, rest = s.queue[:n:n], slices.Clone(s.queue[n:])
	}
	s.queue = rest
	s.ledger.metrics.queued.Sub(float64(len(batch)))
	return batch
}

// issues reports whether only an instance with a trusted clock may answer the item.
func (it *item) issues() bool {
	return slices.ContainsFunc(it.drafts, func(d *Draft) bool { return d.Kind == KindGrant || d.Kind == KindCheck })
}

func (it *item) revokes() bool { return len(it.drafts) > 0 && it.drafts[0].Kind == KindRevocation }

func (s *sequencer) memory() memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// remember keeps an entry that is durable.
func (s *sequencer) remember(m memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.seq > s.known.seq {
		s.known = m
	}
}
