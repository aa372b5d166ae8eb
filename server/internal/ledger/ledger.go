// Package ledger is Deputy's durable truth: the record of every grant, refusal, check, void and
// revocation, numbered without gaps within each tenant, in SQLite or PostgreSQL.
//
// It owns the order of things. An entry's number is its place in the order of commits, across all
// instances on one database, and a grant is recorded only if no revocation before it hits the
// grant's lineage, its idempotency key is free and its single uses are new: all decided inside the
// transaction that appends, under the lock of the tenant's head. It also owns the canonical bytes
// that will be proven to outsiders (docs/ledger.md).
//
// It must not know of tokens, signatures, policy or Redis: claims are bytes to it, except for the
// few members that say what a revocation can hit. Nothing secret reaches it but private keys that were
// sealed under a key that it does not know, so nothing secret can be read from it.
package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/clock"
)

// ErrNotFound is returned where the tenant has no such entry.
var ErrNotFound = errors.New("ledger: no such entry")

// Config is everything that may be left at its zero value.
type Config struct {
	// Clock judges what time it is. nil: a clock of the ledger's own, by the clocks of this machine and of PostgreSQL, or
	// by Now alone where that is set.
	Clock      *clock.Clock
	Now        func() time.Time      // for tools that record another time; not beside Clock. nil: Clock's
	Rand       io.Reader             // salts and batch marks; nil: crypto/rand.Reader
	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics

	// Skews is, by tenant, how far the clocks of issuers of root tokens may be ahead: a cut-off also hits a root token that
	// was issued so long after it. Default 30 s.
	Skews map[string]time.Duration
	// Timeout bounds one transaction including the time to find out what became of it; Append
	// answers within this and a quarter of a second. Default 1.5 s.
	Timeout  time.Duration
	MaxBatch int // drafts in one transaction. Default 256
	MaxQueue int // drafts of one tenant that wait; more are refused as unavailable. Default 4096

	Retention map[string]Retention // by tenant; what Maintain forgets. Default nothing
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Clock == nil && c.Now != nil:
		c.Clock = clock.Only(c.Now)
	case c.Clock == nil:
		c.Clock = clock.New(clock.Config{Logger: c.Logger})
	}
	c.Now = c.Clock.Now
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Timeout <= 0 {
		c.Timeout = 1500 * time.Millisecond
	}
	if c.MaxBatch <= 0 {
		c.MaxBatch = 256
	}
	if c.MaxQueue <= 0 {
		c.MaxQueue = 4096
	}
	return c
}

// attempt is the part of Timeout for the transaction itself; the rest is for finding out.
func (c Config) attempt() time.Duration { return c.Timeout * 2 / 3 }

// Ledger is one instance's access to the ledger. It is safe for concurrent use; any number of
// instances may share a database.
type Ledger struct {
	config  Config
	store   store
	metrics *metrics
	lost    lostBlocks
	life    life

	recovering bool // nothing is doubted: this is the recovery

	mu      sync.Mutex
	tenants map[string]*sequencer
	closed  bool
	turns   sync.WaitGroup // goroutines of sequencers and readers
}

// Open connects to a migrated database: "sqlite:///var/lib/deputy/ledger.db" or
// "postgres://user@host/database". It refuses a schema that is not the one this program was built
// for, and settings under which a commit could be lost.
func Open(ctx context.Context, dsn string, config Config) (*Ledger, error) {
	config = config.withDefaults()
	m, err := newMetrics(config.Registerer)
	if err != nil {
		return nil, fmt.Errorf("ledger: register metrics: %w", err)
	}
	l := &Ledger{config: config, metrics: m, tenants: make(map[string]*sequencer)}
	if err = CheckAddress(dsn); err != nil {
		return nil, fmt.Errorf("ledger: the address of the database %w", err)
	}
	if isSQLite(dsn) {
		l.store, err = openSQLite(ctx, dsn, config)
	} else {
		l.store, err = openPostgres(ctx, dsn, config)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	// A ledger that is doubted is opened all the same: it is read, and refuses to be believed. What else keeps the
	// first probe from an answer is asked again before anything is appended.
	if err := l.probe(ctx); errors.Is(err, errStandby) {
		return nil, errors.Join(fmt.Errorf("ledger: %w", errStandby), l.Close())
	}
	return l, nil
}

// CheckAddress refuses an address of a database with parts that Open would not honor. The error
// repeats nothing of the address, which may hold a password.
func CheckAddress(dsn string) error {
	_, err := url.Parse(dsn)
	switch {
	case !isSQLite(dsn) && !isPostgres(dsn):
		return errors.New("must begin with postgres:// or sqlite:///")
	case strings.Contains(dsn, "#"):
		return errors.New("must have no fragment; write # as %23")
	case isSQLite(dsn):
		_, err := sqlitePath(dsn)
		return err
	case err != nil:
		return errors.New("is malformed; write postgres://user@host/database")
	}
	return nil
}

func isSQLite(dsn string) bool { return strings.HasPrefix(dsn, "sqlite:") }

func isPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// Close refuses further drafts, waits until those that are queued are decided, and disconnects. Closing
// again does nothing.
func (l *Ledger) Close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	l.turns.Wait()
	if again {
		return nil
	}
	return l.store.close()
}

// Ready says whether the database answers, and whether tenants can append for whom that failed the last time.
func (l *Ledger) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	if err := l.store.ready(ctx); err != nil {
		return unavailable(err)
	}
	l.mu.Lock()
	var failing []string
	for name, s := range l.tenants {
		if s.failing.Load() {
			failing = append(failing, name)
		}
	}
	l.mu.Unlock()
	for _, tenant := range failing {
		// Nothing to write: it takes the lock of the head, and gives it back.
		if _, err := l.submit(ctx, tenant, &item{done: make(chan struct{})}); err != nil {
			return err
		}
	}
	return nil
}

// Result is what became of one draft.
type Result struct {
	Receipt Receipt
	Err     error
}

// AppendAll records the drafts of one call in one transaction and returns once it is durable, with a
// Result for each draft. An error is always a *delegation.Error: with Receipt.Seq set, the
// transaction refused the draft and recorded that refusal; without, the entry was not recorded, or
// (reason unavailable) nobody could find out in time. Only a nil error allows a token to be signed.
//
// uses are single-use credentials of the whole call: they are noted whatever becomes of the drafts,
// and if one of them was used before, every draft of the call becomes that refusal, refusals too: a
// replayed credential gets no other answer. A draft that is malformed, which is a mistake of the calling
// code, fails the whole call.
//
// When ctx ends while the drafts are queued, they are withdrawn. After that AppendAll waits for the
// outcome whatever becomes of ctx, so that nobody is told a guess.
func (l *Ledger) AppendAll(ctx context.Context, tenant string, drafts []*Draft, uses []SingleUse) []Result {
	results := make([]Result, len(drafts))
	fail := func(err error) []Result {
		for i := range results {
			results[i] = Result{Err: err}
		}
		return results
	}
	if len(drafts) == 0 {
		return results
	}
	for _, d := range drafts {
		if err := d.check(tenant); err != nil {
			return fail(malformed(err))
		}
		if (d.Kind == KindRevocation) != (drafts[0].Kind == KindRevocation) {
			return fail(malformed(errors.New("revocations share a call with revocations only")))
		}
	}
	if err := checkUses(uses); err != nil {
		return fail(malformed(err))
	}
	start := time.Now()
	decided, err := l.submit(ctx, tenant, &item{drafts: drafts, uses: uses, done: make(chan struct{})})
	if err != nil {
		fail(err)
	} else {
		results = decided
	}
	for i, d := range drafts {
		l.metrics.appended(d.Kind, time.Since(start), results[i].Err)
	}
	return results
}

// Append is AppendAll for one draft.
func (l *Ledger) Append(ctx context.Context, tenant string, d *Draft, uses ...SingleUse) (Receipt, error) {
	r := l.AppendAll(ctx, tenant, []*Draft{d}, uses)[0]
	return r.Receipt, r.Err
}

// Spend notes single uses without an entry. If one of them was used before, the error has its
// reason; the new ones among them are noted all the same.
func (l *Ledger) Spend(ctx context.Context, tenant string, uses []SingleUse) error {
	if err := checkUses(uses); err != nil {
		return malformed(err)
	}
	if tenant == "" || !storable(tenant) {
		return malformed(errTenant)
	}
	if len(uses) == 0 {
		return nil
	}
	_, err := l.submit(ctx, tenant, &item{uses: uses, done: make(chan struct{})})
	return err
}

// malformed is a mistake of the calling code, not of its caller.
func malformed(err error) error {
	return delegation.Refuse(delegation.Internal, "", "internal error: nothing was recorded").
		WithCause(fmt.Errorf("ledger: malformed draft: %w", err))
}

func unavailable(err error) error { return delegation.Unavailable("ledger", err) }

var errTenant = errors.New("the tenant is empty or cannot be stored")

var errClosed = errors.New("ledger: closed")

// sequencer returns the tenant's, which exists from the tenant's first use on: tenants are sections
// of the configuration, so there are few.
func (l *Ledger) sequencer(tenant string) (*sequencer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	s := l.tenants[tenant]
	if s == nil {
		s = &sequencer{ledger: l, tenant: tenant, live: newRevocations(l, tenant), statuses: newStatusLists(l, tenant)}
		l.tenants[tenant] = s
	}
	return s, nil
}

// spawn runs f in a goroutine that Close waits for, unless the ledger is closed.
func (l *Ledger) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.turns.Go(f)
	return true
}
