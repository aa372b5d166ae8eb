// Package ledger is Deputy's durable record of every grant, refusal, check, void and revocation,
// numbered without gaps within each tenant, in SQLite or PostgreSQL.
//
// It owns the order of events. An entry's number is its place in the order of commits, across all
// instances on one database. A grant is recorded only if no earlier revocation hits its lineage,
// its idempotency key is free and its single uses are new. All of this is decided inside the
// transaction that appends, under the lock of the tenant's head. The package also owns the
// canonical bytes that are proven to outsiders (docs/ledger.md).
//
// It must not depend on tokens, signatures, policy or Redis. Claims are bytes to it, except for the
// few members that a revocation can hit. It receives no secrets except private keys that are sealed
// under a key that it does not have, so no secret can be read from it.
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

// Config holds options. The zero value of each one is usable.
type Config struct {
	// Clock is the source of ledger time. nil: a clock of the ledger's own, from the clocks of this
	// machine and of PostgreSQL, or from Now alone where that is set.
	Clock      *clock.Clock
	Now        func() time.Time      // for tools that record another time; not beside Clock. nil: Clock's
	Rand       io.Reader             // salts and batch marks; nil: crypto/rand.Reader
	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics

	// Skews is, by tenant, how far the clocks of issuers of root tokens may be ahead. A cut-off
	// also hits a root token that was issued that long after it. Default 30 s.
	Skews map[string]time.Duration
	// Timeout bounds one transaction, including the time to find out its outcome. Append returns
	// within this and a quarter of a second. Default 1.5 s.
	Timeout  time.Duration
	MaxBatch int // drafts in one transaction. Default 256
	MaxQueue int // waiting drafts of one tenant; more are refused as unavailable. Default 4096

	Retention map[string]Retention // by tenant; what Maintain removes. Default nothing
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

// attempt is the part of Timeout for the transaction itself. The rest is for finding out its
// outcome.
func (c Config) attempt() time.Duration { return c.Timeout * 2 / 3 }

// Ledger is one instance's access to the ledger. It is safe for concurrent use. Any number of
// instances may share a database.
type Ledger struct {
	config  Config
	store   store
	metrics *metrics
	lost    lostBlocks
	life    life

	recovering bool // no doubt is raised: this process recovers the ledger

	mu      sync.Mutex
	tenants map[string]*sequencer
	closed  bool
	turns   sync.WaitGroup // goroutines of sequencers and readers
}

// Open connects to a migrated database: "sqlite:///var/lib/deputy/ledger.db" or
// "postgres://user@host/database". It refuses a schema that this program was not built for, and
// settings under which a commit could be lost.
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
	// A ledger in doubt is opened all the same: it can be read, and refuses to serve. Any other
	// failure of the first probe is tried again before anything is appended.
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

// Close refuses further drafts, waits until the queued ones are decided, and disconnects. A second
// call does nothing.
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

// Ready reports whether the database answers, and whether the tenants whose last append failed can
// append again.
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
		// There is nothing to write: this takes the lock of the head and releases it.
		if _, err := l.submit(ctx, tenant, &item{done: make(chan struct{})}); err != nil {
			return err
		}
	}
	return nil
}

// Result is the outcome of one draft.
type Result struct {
	Receipt Receipt
	Err     error
}

// AppendAll records the drafts of one call in one transaction and returns once it is durable, with
// a Result for each draft. An error is always a *delegation.Error. If Receipt.Seq is set, the
// transaction refused the draft and recorded that refusal. Otherwise the entry was not recorded, or
// its outcome is unknown (reason unavailable). A token may be signed only if the error is nil.
//
// uses are single-use credentials of the whole call. They are spent whatever the outcome of the
// drafts is. If one of them was used before, every draft of the call becomes that refusal,
// including drafts of refusals: a replayed credential gets no other answer. A malformed draft is a
// mistake of the calling code, and fails the whole call.
//
// When ctx ends while the drafts are queued, they are withdrawn. After that AppendAll waits for the
// outcome even if ctx ends, so that it never returns a guess.
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

// Spend records single uses without an entry. If one of them was used before, the error has its
// reason. The new ones among them are recorded all the same.
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

// sequencer returns the tenant's sequencer, which exists from the tenant's first use on. Tenants
// are sections of the configuration, so there are few.
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

// spawn runs f in a goroutine that Close waits for. It returns false if the ledger is closed.
func (l *Ledger) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.turns.Go(f)
	return true
}
