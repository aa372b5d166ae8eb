package ledger

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
)

const (
	MostRecent = mostRecent
	PageSize   = pageSize
)

// Protection names what a negative control switches off.
type Protection func(*protections)

var (
	NoRevocationCheck Protection = func(p *protections) { p.revocations = true }
	NoSingleUse       Protection = func(p *protections) { p.singleUse = true }
	NoIdempotency     Protection = func(p *protections) { p.idempotency = true }
	NoDurability      Protection = func(p *protections) { p.durability = true }
	NoUnbroken        Protection = func(p *protections) { p.unbroken = true }
	NoStatusNews      Protection = func(p *protections) { p.statusNews = true }
	NoStatusVoids     Protection = func(p *protections) { p.statusVoids = true }
	NoStatusGap       Protection = func(p *protections) { p.statusGap = true }
)

// SwitchOff must be called before the ledger is used.
func (l *Ledger) SwitchOff(p Protection) { p(&l.off) }

// OpenWithSeam opens a ledger whose statements fail where the seam says so.
func OpenWithSeam(ctx context.Context, dsn string, config Config, s func(point string) error) (*Ledger, error) {
	return open(ctx, dsn, config, s)
}

// Queued counts the tenant's drafts that wait for a turn.
func (l *Ledger) Queued(tenant string) int {
	s, err := l.sequencer(tenant)
	if err != nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// Salt is the salt of a personal field, by its number in the canonical form.
func (e *Entry) Salt(field int) [32]byte { return e.salts.sum[field] }

// Advance has the tenant's memory take revocations as if they had been read from the database.
func (l *Ledger) Advance(tenant string, list []delegation.Revocation) {
	l.live(tenant).advance(list, true)
}

// Sweep forgets what has ended, now.
func (l *Ledger) Sweep(tenant string) {
	r := l.live(tenant)
	r.mu.Lock()
	r.swept = r.swept.Add(-2 * sweepEvery)
	r.mu.Unlock()
	r.sweep(l.config.Now())
}

// Kept counts the revocations in memory.
func (l *Ledger) Kept(tenant string) (live, recent int) {
	f := l.live(tenant).feed.Load()
	return len(f.live), len(f.recent)
}

func (l *Ledger) live(tenant string) *revocations {
	s, err := l.sequencer(tenant)
	if err != nil {
		panic(err)
	}
	return s.live
}

// Statement is a statement with arguments.
type Statement struct {
	sql  string
	args []any
}

// FrequentStatements are those whose plans matter most.
var FrequentStatements = map[string]Statement{
	"tail read":   {sqlRevocations, []any{"acme", int64(50_000), int64(0), everything}},
	"cold page":   {sqlRevocations, []any{"acme", int64(100), int64(1), int64(pageSize)}},
	"new voids":   {sqlVoids, []any{"acme", int64(50_000), int64(50_100), int64(0), int64(131_071)}},
	"live claims": {sqlClaims, []any{"acme", int64(100), int64(50_000), int64(0), int64(claimsPage)}},
}

// WastefulStatement is one that no index helps.
var WastefulStatement = Statement{`SELECT seq FROM entries WHERE detail = $1`, []any{"x"}}

// Plan says how the database will go about a statement.
func (l *Ledger) Plan(t testing.TB, s Statement) string {
	t.Helper()
	explain := "EXPLAIN "
	if _, sqlite := l.store.(*sqliteStore); sqlite {
		explain = "EXPLAIN QUERY PLAN "
	}
	found, err := l.store.query(t.Context(), explain+s.sql, s.args...)
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	err = eachRow(found, func() error {
		var line string
		if explain == "EXPLAIN " {
			err := found.Scan(&line)
			fmt.Fprintln(&plan, line)
			return err
		}
		var a, b, c int
		err := found.Scan(&a, &b, &c, &line)
		fmt.Fprintln(&plan, line)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

// ForgetRecent has the tenant's memory lose the order of its revocations, as after very many of them.
func (l *Ledger) ForgetRecent(tenant string) {
	r := l.live(tenant)
	r.mu.Lock()
	defer r.mu.Unlock()
	next := *r.feed.Load()
	next.recent, next.before = nil, next.last
	r.feed.Store(&next)
}

// StatusLists counts the tenant's lists in memory.
func (l *Ledger) StatusLists(tenant string) int {
	s, err := l.sequencer(tenant)
	if err != nil {
		return 0
	}
	s.statuses.mu.Lock()
	defer s.statuses.mu.Unlock()
	return len(s.statuses.by)
}

const MostStatusLists = mostStatusLists
