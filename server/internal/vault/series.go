package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Maker makes and reads the keys of one use.
type Maker[K any] struct {
	// Make makes a private key.
	Make func(algorithm string) (private []byte, err error)
	// Open reads one. The id is derived from the key. Errors never hold what was read.
	Open func(private []byte, algorithm string) (key K, id string, err error)
}

// Held is a key that is in force.
type Held[K any] struct {
	State
	Key K
}

// Set holds the keys that are in force at one time, the earliest first. It is immutable. It is
// valid until one of them enters another phase or another key is added.
type Set[K any] struct {
	Keys []Held[K]

	from, until time.Time // valid between these; a zero until: without end
}

// Series holds the keys of one tenant and use. It is safe for concurrent use.
type Series[K any] struct {
	plan  Plan
	maker Maker[K]
	now   func() time.Time

	mu      sync.Mutex // guards reading and the fields below
	rows    []Row
	opened  map[uint64]openedKey[K]
	current atomic.Pointer[Set[K]]
	readAt  atomic.Pointer[time.Time] // when the newest successful read began
}

type openedKey[K any] struct {
	sealed []byte
	bound  []byte
	key    K
}

// NewSeries returns a series without keys: Open reads them. now may be nil: time.Now.
func NewSeries[K any](plan Plan, maker Maker[K], now func() time.Time) *Series[K] {
	if now == nil {
		now = time.Now
	}
	return &Series[K]{plan: plan, maker: maker, now: now}
}

// Now returns the keys that are in force. It returns an error if the table was not read for longer
// than Stale.
func (s *Series[K]) Now() (*Set[K], error) {
	now := s.now()
	read := s.readAt.Load()
	switch {
	case read == nil:
		return nil, errors.New("the managed keys have not been read")
	case now.Sub(*read) > Stale:
		return nil, fmt.Errorf("the managed keys are stale: they were last read at %s", read.UTC().Format(time.RFC3339))
	}
	if set := s.current.Load(); set.isRight(now) {
		return set, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.advance(now), nil
}

func (set *Set[K]) isRight(now time.Time) bool {
	return set != nil && !now.Before(set.from) && (set.until.IsZero() || now.Before(set.until))
}

// advance returns the set of this time, and makes it if necessary. The caller holds s.mu.
func (s *Series[K]) advance(now time.Time) *Set[K] {
	if set := s.current.Load(); set.isRight(now) {
		return set
	}
	states, from, until := s.plan.states(s.rows, now)
	set := &Set[K]{from: from, until: until}
	for _, state := range states {
		// A clock that was set back does not restore keys that were retired when the table was
		// read.
		if key, opened := s.opened[state.Number]; opened && state.Phase != Retired {
			set.Keys = append(set.Keys, Held[K]{state, key.key})
		}
	}
	s.current.Store(set)
	return set
}

// Member is a *Series of any kind, as its vault uses it.
type Member interface {
	planned() Plan
	take(ctx context.Context, kms KMS, rows []Row, began time.Time) error
	make(row Row) (private []byte, id string, err error)
}

func (s *Series[K]) planned() Plan { return s.plan }

// make makes the private key of a row.
func (s *Series[K]) make(row Row) (private []byte, id string, err error) {
	if private, err = s.maker.Make(row.Algorithm); err != nil {
		return nil, "", err
	}
	_, id, err = s.maker.Open(private, row.Algorithm)
	return private, id, err
}

// take puts what was read into force: all of it, or nothing if one key that is in force does not
// open. Rows never vanish: an empty table does not make this instance start over.
func (s *Series[K]) take(ctx context.Context, kms KMS, rows []Row, began time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(rows) < len(s.rows) {
		return fmt.Errorf("%d of the keys for %s of tenant %s are missing from the table", len(s.rows)-len(rows), s.plan.Use, s.plan.Tenant)
	}
	states, _, _ := s.plan.states(rows, s.now())
	opened := make(map[uint64]openedKey[K])
	for _, state := range states {
		if state.Phase == Retired {
			continue
		}
		row, bound := state.Row, state.bound()
		if have, there := s.opened[row.Number]; there && bytes.Equal(have.sealed, row.Sealed) && bytes.Equal(have.bound, bound) {
			opened[row.Number] = have
			continue
		}
		key, err := s.open(ctx, kms, row)
		if err != nil {
			return fmt.Errorf("the key %s for %s of tenant %s does not open: %w", row.ID, row.Use, row.Tenant, err)
		}
		opened[row.Number] = openedKey[K]{row.Sealed, bound, key}
	}
	if !slices.EqualFunc(s.rows, rows, same) {
		s.current.Store(nil)
	}
	s.rows, s.opened = rows, opened
	s.advance(s.now())
	s.readAt.Store(&began)
	return nil
}

func same(a, b Row) bool {
	return bytes.Equal(a.bound(), b.bound()) && bytes.Equal(a.Sealed, b.Sealed) &&
		a.Lifetime == b.Lifetime && a.Retired.Equal(b.Retired) && a.SealedBy == b.SealedBy
}

func (s *Series[K]) open(ctx context.Context, kms KMS, row Row) (key K, err error) {
	private, err := kms.Open(ctx, row.SealedBy, row.Sealed, row.bound())
	if err != nil {
		return key, err
	}
	key, id, err := s.maker.Open(private, row.Algorithm)
	if err == nil && id != row.ID {
		err = errors.New("it holds a different key")
	}
	return key, err
}
