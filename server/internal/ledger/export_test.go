package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/mod/sumdb/tlog"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
)

const (
	MostRecent = mostRecent
	PageSize   = pageSize
)

// WrapWriter has a ledger in SQLite write over connections that the function returns for those of
// the driver.
func (l *Ledger) WrapWriter(t testing.TB, wrap func(driver.Conn) driver.Conn) {
	st := l.store.(*sqliteStore)
	<-st.turn
	st.discard()
	unwrapped := st.writers
	st.writers = sql.OpenDB(wrapped{unwrapped, wrap})
	st.writers.SetMaxOpenConns(1)
	st.turn <- struct{}{}
	t.Cleanup(func() {
		if err := unwrapped.Close(); err != nil {
			t.Error(err)
		}
	})
}

// wrapped makes connections that wrap those of another pool.
type wrapped struct {
	db   *sql.DB
	wrap func(driver.Conn) driver.Conn
}

func (w wrapped) Driver() driver.Driver { return w.db.Driver() }

func (w wrapped) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var c driver.Conn
	err = conn.Raw(func(raw any) error {
		c = w.wrap(raw.(driver.Conn))
		return nil
	})
	return pooled{c, conn}, err
}

// pooled is a connection that takes that of the pool along when it is closed.
type pooled struct {
	driver.Conn
	conn *sql.Conn
}

func (p pooled) Close() error {
	_ = p.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = p.conn.Close()
	return nil
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

// Retain does what Maintain does for retention, until there is nothing more to do.
func (l *Ledger) Retain(ctx context.Context, tenant string) error {
	for {
		if more, err := l.retain(ctx, tenant); !more || err != nil {
			return err
		}
	}
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
	r.forgotAt = r.forgotAt.Add(-2 * forgetEvery)
	r.mu.Unlock()
	r.forgetExpired(l.config.Now())
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

// BlockSize and the other figures of the search index.
const (
	BlockSize       = blockSize
	MostRows        = mostRows
	MostDescendants = mostDescendants
	MostJudged      = mostJudged
	Unsettle        = sqlUnsettle
)

// BuildIndex builds the index up to its end, or at most so many blocks.
func (l *Ledger) BuildIndex(t testing.TB, tenant string, most int) {
	t.Helper()
	for range most {
		more, err := l.index(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

// Indexed counts the blocks of the index.
func (l *Ledger) Indexed(t testing.TB, tenant string) uint64 {
	t.Helper()
	h, _, err := l.searchHead(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	return h.block
}

// Reindex builds one block again.
func (l *Ledger) Reindex(ctx context.Context, tenant string, block uint64) error {
	return l.reindex(ctx, tenant, block)
}

// Lost counts the blocks that searches found damaged and that are not mended.
func (l *Ledger) Lost(tenant string) int {
	l.lost.mu.Lock()
	defer l.lost.mu.Unlock()
	return len(l.lost.blocks[tenant])
}

// Statement is a statement with arguments.
type Statement struct {
	sql  string
	args []any
}

// FrequentStatements are those whose plans matter most.
var FrequentStatements = map[string]Statement{
	"tail read":   {sqliteRevocations, []any{"acme", int64(50_000), int64(0), everything}},
	"cold page":   {sqliteRevocations, []any{"acme", int64(100), int64(1), int64(pageSize)}},
	"extent":      {sqlExtent, []any{"acme"}},
	"postings":    {sqlPostings, []any{"acme", int64(7), int64(10), int64(20)}},
	"facets":      {sqlFacets, []any{"acme", int64(5121), int64(5633)}},
	"since":       {sqlSince, []any{"acme", int64(1), int64(50_000), int64(1)}},
	"by number":   {sqlEntries + sqlEntriesIn, byNumber("acme", []uint64{5, 500, 5000})},
	"of a jti":    {sqlOfID, []any{"acme", "01KA", int64(1), int64(50_000)}},
	"of a txn":    {sqlOfTxn, []any{"acme", "01KA", int64(1), int64(50_000)}},
	"window":      {sqlWindow, []any{"acme", int64(46_000), int64(50_000)}},
	"by jti":      {sqlEntries + `e.tenant = $1 AND e.jti = $2 AND e.jti <> ''`, []any{"acme", "01KA"}},
	"chain":       {sqlEntries + sqlUp, []any{"acme", "01KA", int64(32)}},
	"family":      {sqlFamily, []any{"acme", "01KA", int64(100), int64(mostDescendants)}},
	"parent":      {sqlGrant, []any{"acme", "01KA"}},
	"voided":      {sqlVoided, byNumber("acme", []uint64{5, 500, 5000})},
	"first claim": {sqlFirstClaims, []any{"acme"}},
	"claims":      {sqlClaimsIn, append(byNumber("acme", []uint64{5, 500, 5000}), int64(1))},
	"index head":  {sqlSearchHead, []any{"acme"}},
	"new voids":   {sqlVoids, []any{"acme", int64(50_000), int64(50_100), int64(0), int64(131_071)}},
	"a page":      {sqlEntries + sqlAfter, []any{"acme", int64(5121), int64(500)}},
	"erased":      {sqlEntries + about, []any{"acme", int64(5121), int64(5633), "user:u-1"}},
	"due":         {sqlReady, []any{"acme", int64(5121), int64(5633), int64(1), int64(1)}},
	"endless":     {sqlEntries + endless, []any{"acme", int64(5121), int64(5633)}},
	"leaves":      {sqlLeaves, []any{"acme", int64(5121), int64(5633)}},
	"age":         {sqlAge, []any{"acme", int64(5121), int64(5633), []byte{}}},
	"drop":        {sqlDrop, []any{"acme", int64(5121), int64(5633), int64(1)}},
	"sweep":       {sqlDropEnded, []any{"acme", int64(5633), int64(1)}},
	"live claims": {sqlClaims, []any{"acme", int64(100), int64(50_000), int64(0), int64(claimsPage)}},
}

// PruningStatements run in every transaction that adds rows of their kind.
var PruningStatements = map[string]Statement{
	"single_uses_until":      {limited(sqlPruneUses, 2), []any{"acme", int64(1)}},
	"idempotency_keys_until": {limited(sqlPruneKeys, 2), []any{"acme", int64(1)}},
}

// WastefulStatement is one that no index helps.
var WastefulStatement = Statement{`SELECT seq FROM entries WHERE detail = $1`, []any{"x"}}

// Plan is how the database will execute a statement.
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

// Meet has the pool make a connection while its others are busy, one of which has ended.
func (l *Ledger) Meet(ctx context.Context) error {
	pool := l.store.(*postgresStore).pool
	busy := pool.AcquireAllIdle(ctx)
	for i, conn := range busy {
		if i == 0 {
			_ = conn.Conn().Close(ctx)
			conn.Release()
			continue
		}
		defer conn.Release()
	}
	conn, err := pool.Acquire(ctx)
	if err == nil {
		conn.Release()
	}
	return err
}

// EntryColumns are all columns of entries.
const EntryColumns = entryColumns

// MigrateTo brings the schema up to an old version.
func MigrateTo(t testing.TB, dsn string, version int64) {
	t.Helper()
	var db *sql.DB
	var err error
	dialect, folder := goose.DialectSQLite3, "sqlite"
	if isSQLite(dsn) {
		db, err = sqliteDB(dsn, "rwc", time.Second)
	} else {
		dialect, folder = goose.DialectPostgres, "postgres"
		db, err = sql.Open("pgx", dsn)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	provider, err := migrator(dialect, db, folder, nil)
	if err == nil {
		_, err = provider.UpTo(t.Context(), version)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ReadNodes is what proofs are made from, asked of a database that is only a function.
func ReadNodes(leaves func(from, to uint64) []tlog.Hash, nodes map[audit.Node]tlog.Hash, indexes []int64) (hashes []tlog.Hash, most int, err error) {
	db := &fakeNodes{leaves: leaves, nodes: nodes}
	hashes, err = readNodes(context.Background(), db, "acme", indexes)
	return hashes, db.most, err
}

type fakeNodes struct {
	leaves func(from, to uint64) []tlog.Hash
	nodes  map[audit.Node]tlog.Hash // by Level and N, without Hash
	most   int                      // rows of one statement
}

func (f *fakeNodes) query(_ context.Context, _ string, args ...any) (rows, error) {
	from, to := uint64(args[1].(int64)), uint64(args[2].(int64))
	r := &fakeRows{}
	if len(args) == 3 {
		r.list = f.leaves(from, to)
	} else {
		for n := from; n < to; n++ {
			if h, there := f.nodes[audit.Node{Level: int(args[3].(int64)), N: n}]; there {
				r.list = append(r.list, h)
			}
		}
	}
	f.most = max(f.most, len(r.list))
	return r, nil
}

type fakeRows struct{ list []tlog.Hash }

func (r *fakeRows) Next() bool { return len(r.list) > 0 }
func (r *fakeRows) Scan(into ...any) error {
	*into[0].(*[]byte) = bytes.Clone(r.list[0][:])
	r.list = r.list[1:]
	return nil
}
func (r *fakeRows) Err() error { return nil }
func (r *fakeRows) Close()     {}

// ForgetRecent has the tenant's memory lose the order of its revocations, as after very many of
// them.
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

// PruneAfter is how much is added, and PruneEvery how much time passes, before what has ended is
// removed.
const (
	PruneAfter = pruneAfter
	PruneEvery = pruneEvery
)

// Rows counts what a table holds.
func (l *Ledger) Rows(t testing.TB, table string) (n int) {
	t.Helper()
	found, err := l.store.query(t.Context(), `SELECT count(*) FROM `+table)
	if err == nil {
		err = eachRow(found, func() error { return found.Scan(&n) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// RowBeforeFormats is a row of postings that holds nothing, as it was written before rows had a
// format.
func RowBeforeFormats(tenant string, bucket int, block uint64) []byte {
	place := binary.BigEndian.AppendUint64([]byte{byte(bucket)}, block)
	table := crc32.MakeTable(crc32.Castagnoli)
	return binary.BigEndian.AppendUint32(nil, crc32.Update(crc32.Checksum(place, table), table, []byte(tenant)))
}

// Believed reports whether a search takes the row for all that the index has of its bucket.
func Believed(row []byte, tenant string, bucket int, block uint64) bool {
	t := term{}
	t[len(t)-1] = byte(bucket)
	_, whole := find(row, tenant, block, t)
	return whole
}

// EmptyRow is a row of postings of a block in which nothing is found.
func EmptyRow(tenant string, bucket int, block uint64) []byte {
	return rowsOf(tenant, block, nil)[bucket]
}

// ClaimsPage is how many claims a bounded count reads.
const ClaimsPage = claimsPage

// Read is how many claims the count has read.
func (s *Survey) Read() int { return s.read }

// SearchRows is how many rows of the index and of entries one call of Search reads, and whether it
// comes to the end.
func (l *Ledger) SearchRows(t testing.TB, tenant string, q Query) (rows int, whole bool) {
	t.Helper()
	w, err := l.walk(t.Context(), tenant, q)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.page(t.Context(), q.Limit); err != nil {
		t.Fatal(err)
	}
	return mostRows - w.rows, !w.more()
}

// Unproven has the next Sound probe the database.
func (l *Ledger) Unproven() { l.unproven() }

// Reader reads the tenant's revocations into the memory of now, also after that was given up.
func (l *Ledger) Reader(tenant string) func(context.Context) error { return l.live(tenant).refresh }

// ForgetRevocations has the tenant's memory lose what its revocations hit, so that grants are
// recorded behind them.
func (l *Ledger) ForgetRevocations(tenant string) {
	l.live(tenant).set.Store(delegation.NewRevocationSet(l.Skew(tenant)))
}

// Proposed are the numbers that the search index proposes for a query, before the entries are
// compared with it.
func (l *Ledger) Proposed(t testing.TB, tenant string, q Query) []uint64 {
	t.Helper()
	w, err := l.walk(t.Context(), tenant, q)
	if err != nil {
		t.Fatal(err)
	}
	seqs, err := w.propose(t.Context(), mostFound)
	if err != nil {
		t.Fatal(err)
	}
	return seqs
}
