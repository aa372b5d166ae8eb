package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
)

// Incarnation names one continuous life of a ledger. A restored database, or one that another
// server continues, becomes another incarnation when an operator recovers it or a failover is taken
// over.
type Incarnation struct {
	Number    uint64 // 0 at first; the higher one counts
	ID        string // drawn at random for each number: ledgers with the same number differ in it
	Recovered uint64 // Number of the newest recovery: it judged everything older
}

// ErrDoubt is why a ledger is refused: it lost entries, it is not the one in this process's memory,
// or it is unknown whether it lost any. Only a recovery ends it (Recover).
var ErrDoubt = errors.New("the ledger may have lost what it acknowledged: fence all other databases, then run \"deputyd ledger recover\"")

var (
	errStandby = errors.New("PostgreSQL is in recovery: this is a standby, which answers late; name the primary in database.dsn")
	errRenewed = errors.New("the ledger has an incarnation that is new to this process; its memory is rebuilt")
)

const (
	// beatEvery is the pace of probes, each of which is one small durable write.
	beatEvery = time.Second
	// provenFor is for how long a durable write proves that this is the ledger that still takes
	// writes.
	provenFor = 2 * time.Second
)

// life is what this process has read of the incarnation.
type life struct {
	mu      sync.Mutex
	known   bool
	row     incarnation
	doubt   error          // why the ledger is refused; nil: it is not
	proven  *time.Duration // start of the newest successful probe, by the clock that runs in suspend too; nil: the newest one failed
	probing *read          // under way, or nil
}

// incarnation is the row of that name.
type incarnation struct {
	Incarnation
	physical
	beat  int64
	doubt string
}

// physical identifies the server below the ledger, as far as it can be read.
type physical struct {
	standby     bool
	system      string // PostgreSQL's system identifier; "": not known
	timeline    int64  // 0: not known
	synchronous bool   // commits wait for a standby
}

// same reports whether both are one server on one timeline, as far as either is known.
func (p physical) same(q physical) bool {
	return (p.system == "" || q.system == "" || p.system == q.system) && (p.timeline == 0 || q.timeline == 0 || p.timeline == q.timeline)
}

const (
	sqlIncarnation = `SELECT number, id, recovered, system, timeline, synchronous, beat, doubt FROM incarnation`
	sqlBeat        = `UPDATE incarnation SET beat = beat + 1, system = $3, timeline = $4, synchronous = $5 WHERE number = $1 AND id = $2 AND doubt = ''`
	sqlBegin       = `UPDATE incarnation SET beat = beat + 1, number = $3, id = $4, recovered = $5, system = $6, timeline = $7, synchronous = $8, doubt = ''
		WHERE number = $1 AND id = $2`
	// A recovery gives a higher number. A doubt about an earlier incarnation does not apply to the
	// recovered one.
	sqlDoubt = `UPDATE incarnation SET doubt = $1 WHERE doubt = '' AND number <= $2`
)

// Incarnation returns the one that this process knows. The error is why the ledger is refused.
func (l *Ledger) Incarnation() (Incarnation, error) {
	l.life.mu.Lock()
	defer l.life.mu.Unlock()
	return l.life.row.Incarnation, l.life.doubt
}

func (l *Ledger) lifeRow() (known bool, row incarnation) {
	l.life.mu.Lock()
	defer l.life.mu.Unlock()
	return l.life.known, l.life.row
}

// unproven makes the next Sound probe the database.
func (l *Ledger) unproven() {
	l.life.mu.Lock()
	defer l.life.mu.Unlock()
	l.life.proven = nil
}

// Sound returns nil if the ledger may serve: it took a durable write within the last two seconds,
// is no standby, and is the incarnation that this process knows, of which no loss is known.
// Otherwise the error is unavailable. While Beat runs, Sound answers from memory; otherwise it
// writes when the newest write is too old.
func (l *Ledger) Sound(ctx context.Context) error {
	l.life.mu.Lock()
	doubt, recent := l.life.doubt, l.life.proven != nil && l.config.Clock.Elapsed()-*l.life.proven < provenFor
	l.life.mu.Unlock()
	switch {
	case doubt != nil:
		return unavailable(doubt)
	case recent:
		return nil
	}
	return l.probe(ctx)
}

// Beat probes the ledger once a second until ctx ends, and returns nil then. Each probe is a small
// durable write.
func (l *Ledger) Beat(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	failing := false
	for {
		err := l.probe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != failing {
			failing = err != nil
			l.config.Logger.Error("ledger probe", "failing", failing, "error", errors.Unwrap(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Probe probes the ledger now, as Beat does.
func (l *Ledger) Probe(ctx context.Context) error { return l.probe(ctx) }

// probe writes, and shares the outcome with all callers that arrive meanwhile.
func (l *Ledger) probe(ctx context.Context) error {
	l.life.mu.Lock()
	mine := l.life.probing
	if mine == nil {
		mine = &read{done: make(chan struct{})}
		if !l.spawn(func() { l.probeOnce(mine) }) {
			l.life.mu.Unlock()
			return unavailable(errClosed)
		}
		l.life.probing = mine
	}
	l.life.mu.Unlock()
	select {
	case <-mine.done:
		if mine.err != nil {
			return unavailable(mine.err)
		}
		return nil
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
}

func (l *Ledger) probeOnce(r *read) {
	ctx, cancel := context.WithTimeout(context.Background(), l.config.attempt())
	defer cancel()
	began := l.config.Clock.Elapsed()
	_, of := l.lifeRow()
	found, err := l.beat(ctx)
	if r.err = err; errors.Is(err, ErrDoubt) {
		of.Number = max(of.Number, found.Number)
		l.doubt(ctx, of, err)
	}
	l.life.mu.Lock()
	defer l.life.mu.Unlock()
	l.life.probing = nil
	if l.life.proven = &began; r.err != nil {
		l.life.proven = nil
	} else {
		l.life.doubt = nil
	}
	close(r.done)
}

// beat reads what the ledger is. It writes only if that is what this process knows or may take
// over.
func (l *Ledger) beat(ctx context.Context) (row incarnation, err error) {
	err = l.store.change(ctx, func(db changer) error {
		now, err := l.store.physical(ctx, db)
		if err != nil {
			return err
		}
		if now.standby {
			return errStandby
		}
		if row, err = readIncarnation(ctx, db); err != nil {
			return err
		}
		next, err := l.judge(row, now)
		if err != nil {
			return err
		}
		if err := l.remembered(ctx, db, next); err != nil {
			return err
		}
		if err := l.store.touch(ctx, db); err != nil {
			return err
		}
		return l.keepIncarnation(ctx, db, &row, next)
	})
	if err == nil {
		l.follow(row)
	}
	return row, err
}

// keepIncarnation writes next in the place of row, or confirms by a write that the row is still
// there.
func (l *Ledger) keepIncarnation(ctx context.Context, db changer, row *incarnation, next incarnation) error {
	before := *row
	sql, args := sqlBeat, []any{int64(before.Number), before.ID, next.system, next.timeline, flag(next.synchronous)}
	if next.Number != before.Number || before.ID == "" {
		id := make([]byte, 16)
		rand.Read(id) // never fails
		next.ID = hex.EncodeToString(id)
		sql, args = sqlBegin, []any{int64(before.Number), before.ID, int64(next.Number), next.ID, int64(next.Recovered),
			next.system, next.timeline, flag(next.synchronous)}
	}
	err := keep(ctx, db, 1, sql, args...)
	next.beat = before.beat + 1
	*row = next
	return err
}

// judge compares the row with what this process knows, and the server below it with the row. It
// returns the row to write: that of the next incarnation if another server continues the ledger and
// nothing can be missing.
func (l *Ledger) judge(row incarnation, now physical) (incarnation, error) {
	l.life.mu.Lock()
	known, mine := l.life.known, l.life.row
	l.life.mu.Unlock()
	doubt := func(format string, args ...any) (incarnation, error) {
		return row, fmt.Errorf("%w: %s", ErrDoubt, fmt.Sprintf(format, args...))
	}
	next := row
	next.physical = now
	if now.system == "" {
		next.system = row.system
	}
	if now.timeline == 0 {
		next.timeline = row.timeline
	}
	switch {
	case row.doubt != "":
		return doubt("%s", row.doubt)
	case known && row.Number < mine.Number:
		return doubt("this is incarnation %d, and %d was here before", row.Number, mine.Number)
	case known && row.Number == mine.Number && row.ID != mine.ID:
		return doubt("another ledger of incarnation %d was here before", row.Number)
	case known && row.Number == mine.Number && row.beat < mine.beat:
		return doubt("this process made write %d, but the database has %d", mine.beat, row.beat)
	case row.ID == "" || row.physical.same(now):
		return next, nil
	case row.system != "" && now.system != "" && row.system != now.system:
		return doubt("it was moved to another PostgreSQL server")
	case !row.synchronous:
		return doubt("a standby was promoted, or a backup restored, and commits did not wait for it: its timeline is %d, and was %d", now.timeline, row.timeline)
	}
	next.Number++
	return next, nil
}

// follow adopts the row as what is known. What a recovery changed since is read again.
func (l *Ledger) follow(row incarnation) {
	known, before := l.lifeRow()
	if known && row.Recovered > before.Number {
		l.forgetAll() // first: entries of the former incarnation must not be compared with the next one
	}
	l.life.mu.Lock()
	if !known || row.Number != before.Number || row.beat > before.beat {
		l.life.row, l.life.known = row, true
	}
	l.life.mu.Unlock()
	if !known || row.Number == before.Number {
		return
	}
	l.store.renew()
	l.config.Logger.Warn("ledger: another incarnation", "number", row.Number, "before", before.Number, "recovered", row.Recovered, "timeline", row.timeline)
}

// forgetAll makes every tenant read again, because what is in memory belongs to an incarnation that
// was given up.
func (l *Ledger) forgetAll() {
	l.mu.Lock()
	old := l.tenants
	l.tenants = make(map[string]*sequencer)
	l.mu.Unlock()
	for _, s := range old {
		s.retired.Store(true)
		s.live.retire()
	}
}

// Doubt refuses the ledger until it is recovered, here and at all instances on this database. The
// cause is for operators. A ledger in doubt keeps its first cause.
func (l *Ledger) Doubt(ctx context.Context, cause error) {
	_, mine := l.lifeRow()
	l.doubt(ctx, mine, cause)
}

// doubt is Doubt of the incarnation in which the cause was found, and of no later one.
func (l *Ledger) doubt(ctx context.Context, of incarnation, cause error) {
	if !errors.Is(cause, ErrDoubt) {
		cause = fmt.Errorf("%w: %w", ErrDoubt, cause)
	}
	number := int64(of.Number)
	l.life.mu.Lock()
	if !l.life.known && number == 0 {
		number = math.MaxInt64
	} else if l.life.row.Number > of.Number {
		l.life.mu.Unlock()
		return
	}
	first := l.life.doubt == nil
	if first {
		l.life.doubt = cause
	}
	l.life.mu.Unlock()
	if !first {
		return
	}
	l.config.Logger.Error("ledger in doubt", "cause", cause)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.config.attempt())
	defer cancel()
	reason, _ := strings.CutPrefix(cause.Error(), ErrDoubt.Error()+": ")
	err := l.store.change(ctx, func(db changer) error {
		_, err := db.change(ctx, sqlDoubt, cleanDetail(reason), number)
		return err
	})
	if err != nil { // this process refuses all the same, and so does every other one that finds the cause
		l.config.Logger.Error("ledger doubt not written", "error", err)
	}
}

// memory is the newest entry of a tenant that this process knows to be durable.
type memory struct {
	seq  uint64 // 0: none
	leaf digest
}

// sqlMemory returns what became of a known entry: its leaf, or how far entries were dropped for
// their age. It also returns the time from which tokens are of this incarnation.
const sqlMemory = `SELECT i.number, i.id, i.doubt, coalesce((SELECT e.leaf FROM entries e WHERE e.tenant = $1 AND e.seq = $2), ''),
	coalesce((SELECT r.through FROM retention r WHERE r.tenant = $1), 0),
	coalesce((SELECT c.since FROM recoveries c WHERE c.tenant = $1 ORDER BY c.number DESC LIMIT 1), 0) FROM incarnation i`

// sqlConfirm returns a row if sqlMemory would give the answer of nearly every transaction: this is
// the known incarnation, it is not in doubt, no recovery came before it, and the known entry is
// there.
const sqlConfirm = `SELECT 1 FROM incarnation i WHERE i.number = $3 AND i.id = $4 AND i.recovered = 0 AND i.doubt = ''
	AND ($2 = 0 OR EXISTS (SELECT 1 FROM entries e WHERE e.tenant = $1 AND e.seq = $2 AND e.leaf = $5))`

// witness is the answer of sqlMemory.
type witness struct {
	number  uint64
	id      string
	doubt   string
	leaf    []byte
	dropped uint64
	since   int64 // of the tenant's newest recovery; 0: there was none
}

func (w *witness) fields() []any {
	return []any{&w.number, &w.id, &w.doubt, &w.leaf, &w.dropped, &w.since}
}

// confirmable reports whether sqlConfirm can have an answer. Otherwise sqlMemory is needed at once.
func (q *questions) confirmable() bool { return q.life.ID != "" && q.life.Recovered == 0 }

// confirm returns the arguments of sqlConfirm.
func (q *questions) confirm(tenant string) []any {
	return []any{tenant, int64(q.known.seq), int64(q.life.Number), q.life.ID, q.known.leaf[:]}
}

// confirmed is what sqlMemory would have returned where sqlConfirm returned a row.
func (q *questions) confirmed() witness {
	return witness{number: q.life.Number, id: q.life.ID, leaf: q.known.leaf[:]}
}

// confirms requires that the ledger has the known entry.
func (w *witness) confirms(m memory) error {
	switch {
	case m.seq == 0 || string(w.leaf) == string(m.leaf[:]), len(w.leaf) == 0 && m.seq <= w.dropped:
		return nil
	case len(w.leaf) == 0:
		return fmt.Errorf("%w: entry %d was acknowledged and is missing", ErrDoubt, m.seq)
	}
	return fmt.Errorf("%w: entry %d differs from the acknowledged one", ErrDoubt, m.seq)
}

// remembered compares the ledger with the entries that this process knows, where there is a reason
// to: the database was away, is in doubt, or another server continues it. Entries that a recovery
// gave up are not required.
func (l *Ledger) remembered(ctx context.Context, db querier, next incarnation) error {
	l.life.mu.Lock()
	mine, settled := l.life.row, l.life.doubt == nil && l.life.proven != nil
	l.life.mu.Unlock()
	if settled && next.Number == mine.Number || next.Recovered > mine.Number {
		return nil
	}
	l.mu.Lock()
	known := make(map[string]memory, len(l.tenants))
	for name, s := range l.tenants {
		known[name] = s.memory()
	}
	l.mu.Unlock()
	for tenant, m := range known {
		if err := l.holds(ctx, db, tenant, m); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) holds(ctx context.Context, db querier, tenant string, m memory) error {
	var w witness
	found, err := db.query(ctx, sqlMemory, tenant, int64(m.seq))
	if err == nil {
		err = eachRow(found, func() error { return found.Scan(w.fields()...) })
	}
	if err != nil {
		return err
	}
	if err := w.confirms(m); err != nil {
		return fmt.Errorf("tenant %s: %w", tenant, err)
	}
	return nil
}

// Holds requires that the ledger has the entry with this leaf, or dropped it for its age. Otherwise
// the error is ErrDoubt, or unavailable if the database does not answer.
func (l *Ledger) Holds(ctx context.Context, tenant string, seq uint64, leaf [32]byte) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	err := l.holds(ctx, l.store, tenant, memory{seq, leaf})
	if err != nil && !errors.Is(err, ErrDoubt) {
		return unavailable(err)
	}
	return err
}

// KnownHead is the highest number of an entry that this process saw in the tenant's ledger. After
// Revocations with fresh, no number above it was given before that call.
func (l *Ledger) KnownHead(tenant string) uint64 {
	s, err := l.sequencer(tenant)
	if err != nil {
		return 0
	}
	return max(s.live.head.Load(), s.memory().seq)
}

// Tip is the newest entry of a tenant's log.
type Tip struct {
	Seq  uint64 // 0: none
	Leaf [32]byte
}

const sqlTips = `SELECT h.tenant, h.seq, coalesce(e.leaf, '') FROM heads h LEFT JOIN entries e ON e.tenant = h.tenant AND e.seq = h.seq WHERE h.tenant`

// Tips reads the newest entries of the tenants in one statement. Tenants without entries are left
// out.
func (l *Ledger) Tips(ctx context.Context, tenants ...string) (map[string]Tip, error) {
	ctx, cancel := context.WithTimeout(ctx, l.config.attempt())
	defer cancel()
	found, err := l.store.among(ctx, sqlTips, tenants)
	if err != nil {
		return nil, unavailable(err)
	}
	tips := make(map[string]Tip, len(tenants))
	err = eachRow(found, func() error {
		var tenant string
		var tip Tip
		var leaf []byte
		if err := found.Scan(&tenant, &tip.Seq, &leaf); err != nil {
			return err
		}
		copy(tip.Leaf[:], leaf) // an entry that is missing or was dropped has no leaf
		tips[tenant] = tip
		return nil
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return tips, nil
}

func readIncarnation(ctx context.Context, db querier) (row incarnation, err error) {
	found, err := db.query(ctx, sqlIncarnation)
	if err != nil {
		return row, err
	}
	rows := 0
	err = eachRow(found, func() error {
		rows++
		var synchronous int64
		err := found.Scan(&row.Number, &row.ID, &row.Recovered, &row.system, &row.timeline, &synchronous, &row.beat, &row.doubt)
		row.synchronous = synchronous == 1
		return err
	})
	if err == nil && rows != 1 {
		err = errors.New("the row of the ledger's incarnation is missing")
	}
	return row, err
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
