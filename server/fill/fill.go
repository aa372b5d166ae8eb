// Package fill writes a ledger like that of months of service: users who delegate, agents that hand
// down, refusals, checks, voids and revocations, through the ledger's own append path. It is for
// measuring and for trying things out, never for a database in service.
//
// It owns the shape of such traffic. The ledger decides whether a grant may be recorded: fill
// predicts the decision, and fails if the ledger decides otherwise.
package fill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
)

// Options configure a run.
type Options struct {
	Tenant  string // must have no entries. Required
	Entries int    // how many to write. Required
	// Seed chooses everything that is random, down to ids and salts: with the same seed, tenant,
	// number and end, every leaf of the ledger is the same, on either database.
	Seed uint64
	Span time.Duration // from the first entry to the last. Default 30 days
	// Until is when the last entry is recorded. Default now. What was granted in the minutes before
	// is alive then, and some of it for hours.
	Until time.Time
	// Progress is called now and then with the number of entries written. May be nil.
	Progress func(entries int)
}

// Summary describes what was written, and where to look.
type Summary struct {
	Entries int
	Kinds   map[string]int // entries of each kind
	// Tree is the jti of a grant from which Below others derive, directly or not. Empty if there
	// are too few entries for one.
	Tree  string
	Below int
	Deep  string // jti of a grant at the end of a chain of Depth hops
	Depth int
	// Subject and Actor are principals with many entries.
	Subject, Actor delegation.Principal
	TraceID        string // of the newest tree
}

// Run writes the entries to a migrated database, sqlite:/// or postgres://.
func Run(ctx context.Context, dsn string, o Options) (_ Summary, err error) {
	if o.Tenant == "" || o.Entries <= 0 {
		return Summary{}, errors.New("fill: tenant and entries must be set")
	}
	if o.Span <= 0 {
		o.Span = 30 * 24 * time.Hour
	}
	if o.Until.IsZero() {
		o.Until = time.Now()
	}
	var clock atomic.Pointer[time.Time]
	clock.Store(&o.Until)
	var salts [32]byte
	binary.BigEndian.PutUint64(salts[:], o.Seed)
	l, err := ledger.Open(ctx, dsn, ledger.Config{
		Now:     func() time.Time { return *clock.Load() },
		Rand:    rand.NewChaCha8(salts),
		Timeout: time.Minute, // no caller waits for an answer
	})
	if err != nil {
		return Summary{}, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	there, err := l.Entries(ctx, o.Tenant, 0, 1)
	switch {
	case err != nil:
		return Summary{}, err
	case len(there) > 0:
		return Summary{}, fmt.Errorf("fill: tenant %q has entries already: name another", o.Tenant)
	}
	g := newTraffic(o, l.Skew(o.Tenant))
	if err := write(ctx, l, g, &clock); err != nil {
		return Summary{}, fmt.Errorf("fill: %w", err)
	}
	// Months of service leave an index behind. Without it a search reads the entries themselves.
	if err := indexed(ctx, l, o.Tenant); err != nil {
		return Summary{}, fmt.Errorf("fill: %w", err)
	}
	return g.summary, nil
}

// write appends call after call, so that numbers and times depend on nothing but the traffic. The
// next calls are made up meanwhile.
func write(ctx context.Context, l *ledger.Ledger, g *traffic, clock *atomic.Pointer[time.Time]) error {
	ctx, cancel := context.WithCancel(ctx)
	calls, done := make(chan *call, 2), make(chan struct{})
	go func() {
		defer close(done)
		defer close(calls)
		g.run(func(c *call) bool {
			select {
			case calls <- c:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	defer func() { cancel(); <-done }()
	for c := range calls {
		clock.Store(&c.at)
		for i, r := range l.AppendAll(ctx, g.Tenant, c.drafts, nil) {
			if err := c.judge(i, r); err != nil {
				return err
			}
		}
		if g.Progress != nil {
			g.Progress(int(c.first) + len(c.drafts) - 1)
		}
	}
	return ctx.Err()
}

// call is the drafts of one transaction, with what the ledger must make of them.
type call struct {
	at      time.Time
	first   uint64 // number of the first draft
	drafts  []*ledger.Draft
	revoked map[int]bool // drafts that the ledger must refuse
}

// judge compares what became of draft i with what was foretold.
func (c *call) judge(i int, r ledger.Result) error {
	want := c.first + uint64(i)
	switch {
	case r.Receipt.Seq == 0:
		return fmt.Errorf("entry %d: %w", want, r.Err)
	case r.Receipt.Seq != want:
		return fmt.Errorf("entry %d became number %d: another program writes to this tenant", want, r.Receipt.Seq)
	case c.revoked[i] != (r.Err != nil), r.Err != nil && delegation.AsError(r.Err).Reason != delegation.TokenRevoked:
		return fmt.Errorf("entry %d: the ledger's decision differs from the predicted one: %w", want, r.Err)
	}
	return nil
}
