package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// postgresStore appends in two round trips, each a pipeline: one locks the head and looks up, one
// writes and commits. A third comes between them if another instance has revoked something.
type postgresStore struct {
	pool    *pgxpool.Pool
	attempt time.Duration
	elapsed func() time.Duration
	met     atomic.Pointer[physical]     // by the newest connection
	opened  atomic.Pointer[pgxpool.Pool] // pool, for connections that are made while it is opened
}

func migratePostgres(ctx context.Context, dsn string) error {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return errors.New("the address of the PostgreSQL database is malformed") // pgx repeats passwords
	}
	db := stdlib.OpenDB(*config)
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return errors.Join(err, db.Close())
	}
	return errors.Join(migrate(ctx, goose.DialectPostgres, db, "postgres", locker), db.Close())
}

func openPostgres(ctx context.Context, dsn string, config Config) (store, error) {
	pc, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("the address of the PostgreSQL database is malformed")
	}
	params := pc.ConnConfig.RuntimeParams
	// A client that stops in the middle of a transaction must not keep the tenant's head locked.
	params["lock_timeout"] = milliseconds(config.attempt())
	params["idle_in_transaction_session_timeout"] = milliseconds(2 * config.Timeout)
	// No statement_timeout: it would also end a COMMIT's wait for the synchronous standby, and
	// PostgreSQL then reports success. Contexts bound every statement on the client's side.
	params["statement_timeout"] = "0"
	// A plan lives as long as its connection, including one that was made while the tables were
	// nearly empty. Every frequent statement has an index, which is right at every size. Without
	// this, an unavoidable scan would appear so expensive that PostgreSQL compiles it, which never
	// pays here.
	params["enable_seqscan"], params["jit"] = "off", "off"
	if pc.ConnConfig.ConnectTimeout == 0 || pc.ConnConfig.ConnectTimeout > config.attempt() {
		pc.ConnConfig.ConnectTimeout = config.attempt()
	}
	st := &postgresStore{attempt: config.attempt(), elapsed: config.Clock.Elapsed}
	pc.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if err := assertDurable(ctx, conn); err != nil {
			return err
		}
		return st.meet(ctx, conn)
	}
	pc.BeforeConnect = uncancelled
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, err
	}
	st.pool = pool
	st.opened.Store(pool)
	if err := st.ready(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return st, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// assertDurable verifies every new connection, because the settings of a role or a database can
// change while the instance runs.
func assertDurable(ctx context.Context, conn *pgx.Conn) error {
	for setting, allowed := range map[string]string{"synchronous_commit": "on remote_apply", "fsync": "on", "full_page_writes": "on"} {
		var value string
		if err := conn.QueryRow(ctx, `SELECT current_setting($1)`, setting).Scan(&value); err != nil {
			return err
		}
		if !strings.Contains(" "+allowed+" ", " "+value+" ") {
			return fmt.Errorf("PostgreSQL has %s=%s, under which it can lose what it committed: set it to on", setting, value)
		}
	}
	return nil
}

func (st *postgresStore) ready(ctx context.Context) error {
	var version int64
	err := st.pool.QueryRow(ctx, sqlVersion).Scan(&version)
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe) && pe.Code == "42P01": // undefined_table
		return errUnmigrated
	case err != nil:
		return err
	}
	return checkVersion(version)
}

func (st *postgresStore) close() error {
	st.pool.Close()
	return nil
}

// pgQuerier adapts pgx.
type pgQuerier func(ctx context.Context, sql string, args ...any) (pgx.Rows, error)

func (q pgQuerier) query(ctx context.Context, sql string, args ...any) (rows, error) {
	return q(ctx, sql, args...)
}

func (st *postgresStore) query(ctx context.Context, sql string, args ...any) (rows, error) {
	return st.pool.Query(ctx, sql, args...)
}

func (st *postgresStore) among(ctx context.Context, sql string, tenants []string) (rows, error) {
	return st.query(ctx, sql+` = ANY($1)`, tenants)
}

func (st *postgresStore) view(ctx context.Context, f func(querier) error) error {
	return pgx.BeginTxFunc(ctx, st.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) error { return f(pgQuerier(tx.Query)) })
}

// pgChanger adapts a transaction of pgx.
type pgChanger struct {
	pgQuerier
	tx pgx.Tx
}

func (c pgChanger) change(ctx context.Context, sql string, args ...any) (int64, error) {
	tag, err := c.tx.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

func (st *postgresStore) change(ctx context.Context, f func(changer) error) error {
	conn, err := st.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // does nothing after a commit
	if err := f(pgChanger{tx.Query, tx}); err != nil {
		return err
	}
	return committing(conn.Conn(), func() error { return tx.Commit(ctx) })
}

// postgresTx is a transaction on a connection of its own.
type postgresTx struct {
	st   *postgresStore
	conn *pgxpool.Conn
}

// pipeline collects statements for one round trip.
type pipeline struct {
	batch pgx.Batch
}

func (p *pipeline) add(sql string, args ...any) *pgx.QueuedQuery {
	return p.batch.Queue(sql, args...)
}

func (p *pipeline) send(ctx context.Context, conn *pgxpool.Conn) error {
	return conn.SendBatch(ctx, &p.batch).Close()
}

// These statements also read PostgreSQL's clock. The lock of the head is in a subquery, so that the
// clock is read once it is held.
const (
	pgClock       = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`
	pgLockHead    = `SELECT h.*, ` + pgClock + ` FROM (` + sqlLockRow + ` FOR UPDATE) h`
	pgRevocations = `SELECT CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END, ` + pgClock + sqlRevocations
)

func (st *postgresStore) revocations() string { return pgRevocations }

func (st *postgresStore) time(ctx context.Context) (time.Time, error) {
	var at int64
	err := st.pool.QueryRow(ctx, `SELECT `+pgClock).Scan(&at)
	return fromMicros(at), err
}

// lockHead is a statement of its own. Later statements of the pipeline take their snapshots when
// the lock is held, and so see everything that was committed under it.
func (p *pipeline) lockHead(tenant string, found *facts) {
	p.add(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	p.add(pgLockHead, tenant).QueryRow(func(row pgx.Row) error {
		var r headRow
		var server int64
		err := row.Scan(append(r.columns(), &server)...)
		if err == nil {
			found.head, found.server = r.head(), fromMicros(server)
		}
		return err
	})
}

func (st *postgresStore) begin(ctx context.Context, tenant string, q questions) (transaction, facts, error) {
	conn, err := st.pool.Acquire(ctx)
	if err != nil {
		return nil, facts{}, err
	}
	tx := &postgresTx{st: st, conn: conn}
	found, err := tx.answer(ctx, tenant, q)
	if errors.Is(err, pgx.ErrNoRows) { // a new tenant
		if _, err = conn.Exec(ctx, `ROLLBACK`); err == nil {
			_, err = conn.Exec(ctx, sqlNewHead, tenant)
		}
		if err == nil {
			found, err = tx.answer(ctx, tenant, q)
		}
	}
	if err != nil {
		tx.rollback()
		return nil, facts{}, err
	}
	return tx, found, nil
}

func (tx *postgresTx) answer(ctx context.Context, tenant string, q questions) (facts, error) {
	found := newFacts()
	p := &pipeline{}
	found.asked = tx.st.elapsed()
	p.lockHead(tenant, &found)
	confirmed := false
	if q.confirmable() {
		p.add(sqlConfirm, q.confirm(tenant)...).Query(func(r pgx.Rows) error {
			return each(r, func(int64) { confirmed, found.witness = true, q.confirmed() })
		})
	} else {
		confirmed = true
		p.remember(tenant, q, &found)
	}
	if len(q.uses) > 0 {
		p.add(`SELECT digest FROM `+eachOf("bytea", "single_uses", "digest = x"), tenant, slicesOf(q.uses)).
			Query(func(r pgx.Rows) error {
				return each(r, func(name []byte) { found.used[digest(name)] = true })
			})
	}
	if len(q.ids) > 0 {
		p.add(`SELECT jti FROM `+eachOf("text", "entries", "jti = x AND jti <> ''"), tenant, q.ids).
			Query(func(r pgx.Rows) error {
				return each(r, func(id string) { found.ids[id] = true })
			})
	}
	if len(q.voids) > 0 {
		p.add(`SELECT seq FROM `+eachOf("bigint", "entries", "seq = x AND kind = 'grant'"), tenant, numbersOf(q.voids)).
			Query(func(r pgx.Rows) error {
				return each(r, func(seq int64) { found.grants[uint64(seq)] = true })
			})
	}
	if len(q.keys) > 0 {
		p.add(sqlKeys+eachOf("bytea", "idempotency_keys", "digest = x"), tenant, slicesOf(q.keys), q.now).
			Query(func(r pgx.Rows) error { return scanKeys(r, found.keys) })
	}
	// The head itself shows whether another instance has revoked something.
	if err := p.send(ctx, tx.conn); err != nil || confirmed && found.head.revocation == q.revokedAfter {
		return found, err
	}
	more := &pipeline{} // one more round trip, also under the lock
	if !confirmed {
		more.remember(tenant, q, &found)
	}
	if found.head.revocation != q.revokedAfter {
		more.add(tx.st.revocations(), tenant, int64(q.revokedAfter), q.revokedUntil, everything).Query(func(r pgx.Rows) error {
			n, err := scanRevocations(r, q.now)
			found.head.revocation, found.revocations = n.newest, n.list
			return err
		})
	}
	return found, more.send(ctx, tx.conn)
}

// remember looks up what became of what was known.
func (p *pipeline) remember(tenant string, q questions, found *facts) {
	p.add(sqlMemory, tenant, int64(q.known.seq)).QueryRow(func(row pgx.Row) error {
		return row.Scan(found.witness.fields()...)
	})
}

// eachOf is the tenant's rows (k) of a table for which the condition holds with one of the list in
// $2, which it calls x. Each row is looked up by its whole key. For a list, a planner that takes
// the table to be empty would read all of the tenant's rows instead.
func eachOf(typ, table, condition string) string {
	return `unnest($2::` + typ + `[]) AS list(x), LATERAL (SELECT * FROM ` + table + ` WHERE tenant = $1 AND ` + condition + ` OFFSET 0) k`
}

// each scans rows of one column.
func each[T any](r pgx.Rows, f func(T)) error {
	var v T
	_, err := pgx.ForEachRow(r, []any{&v}, func() error { f(v); return nil })
	return err
}

func slicesOf(names []digest) [][]byte {
	list := make([][]byte, len(names))
	for i := range names {
		list[i] = names[i][:]
	}
	return list
}

func numbersOf(seqs []uint64) []int64 {
	list := make([]int64, len(seqs))
	for i, seq := range seqs {
		list[i] = int64(seq)
	}
	return list
}

// rollback releases the connection, or closes it if it does not answer at once: the server then
// rolls back by itself.
func (tx *postgresTx) rollback() {
	defer tx.conn.Release()
	if tx.conn.Conn().IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), tx.st.attempt/4)
	defer cancel()
	if _, err := tx.conn.Exec(ctx, `ROLLBACK`); err != nil {
		tx.hangUp()
	}
}

// hangUp closes the connection without waiting for the server.
func (tx *postgresTx) hangUp() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = tx.conn.Conn().Close(ctx)
}

func (tx *postgresTx) commit(ctx context.Context, w *writes) error {
	p := &pipeline{}
	if err := p.write(w); err != nil {
		tx.rollback()
		return err
	}
	committed := false
	p.add(`COMMIT`).Exec(func(tag pgconn.CommandTag) error {
		committed = tag.String() == "COMMIT"
		return nil
	})
	err := committing(tx.conn.Conn(), func() error { return p.send(ctx, tx.conn) })
	if err == nil && committed {
		tx.conn.Release()
		return nil
	}
	// An ERROR means that a statement failed, and the pipeline ends with the first one. Anything
	// else, including FATAL, may have come after the commit.
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.SeverityUnlocalized == "ERROR" || err == nil {
		tx.rollback()
		if pe != nil && pe.ConstraintName == idIndex {
			return errTaken
		}
		if notKept(pe) {
			return errNotKept
		}
		return errors.Join(err, errors.New("PostgreSQL rolled back"))
	}
	tx.hangUp()
	tx.conn.Release()
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// pgInsert inserts any number of entries, with one array for each column.
var pgInsert = func() string {
	var arrays strings.Builder
	for i, field := range new(record).fields() {
		typ := "bigint"
		switch field.(type) {
		case *string:
			typ = "text"
		case *[]byte:
			typ = "bytea"
		}
		fmt.Fprintf(&arrays, ", $%d::%s[]", i+1, typ)
	}
	return counted(`INSERT INTO entries (`+entryColumns+`) SELECT * FROM unnest(`+arrays.String()[2:]+`)`, columns)
}()

var (
	pgInsertNodes = counted(`INSERT INTO tree_nodes (tenant, level, n, hash)
		SELECT $1::text, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[])`, 4)
	pgInsertClaims = counted(`INSERT INTO claims (tenant, seq, until, value)
		SELECT $1::text, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[])`, 4)
	pgInsertUses = counted(`INSERT INTO single_uses (tenant, digest, until, batch)
		SELECT $1::text, u.digest, u.until, $4::bytea FROM unnest($2::bytea[], $3::bigint[]) u(digest, until)`, 4)
	pgInsertKeys = counted(`INSERT INTO idempotency_keys (tenant, digest, fingerprint, seq, until)
		SELECT $1::text, * FROM unnest($2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])`, 5)
	pgAdvance = counted(sqlHead, 7)
)

// PostgreSQL joins what IN selects, and may read all of the tenant's rows to do so. Here each row
// is looked up by its place. Deleted rows stay in the index until the table is vacuumed, so the
// search for the first remaining claims begins at those that were found last time.
const (
	pgPruneUses   = `DELETE FROM single_uses WHERE ctid = ANY (ARRAY(SELECT ctid FROM single_uses WHERE tenant = $1 AND until > 0 AND until < $2 ORDER BY until LIMIT $3))`
	pgPruneKeys   = `DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency_keys WHERE tenant = $1 AND until > 0 AND until < $2 ORDER BY until LIMIT $3))`
	pgPruneClaims = `WITH first AS (SELECT min(seq) AS seq FROM claims WHERE tenant = $1 AND seq >= $4),
		gone AS (DELETE FROM claims WHERE tenant = $1 AND until < $2
			AND seq >= (SELECT seq FROM first) AND seq < (SELECT seq FROM first) + $3)
		SELECT coalesce(seq, $4) FROM first`
)

func (p *pipeline) write(w *writes) error {
	if len(w.entries) > 0 {
		columns, err := transpose(w.entries)
		if err != nil {
			return err
		}
		p.add(pgInsert, append(columns, int64(len(w.entries)))...)
	}
	if len(w.nodes) > 0 {
		levels, numbers, hashes := make([]int64, len(w.nodes)), make([]int64, len(w.nodes)), make([][]byte, len(w.nodes))
		for i := range w.nodes {
			n := &w.nodes[i]
			levels[i], numbers[i], hashes[i] = int64(n.Level), int64(n.N), n.Hash[:]
		}
		p.add(pgInsertNodes, w.tenant, levels, numbers, hashes, int64(len(w.nodes)))
	}
	if n := len(w.claims); n > 0 {
		seqs, untils, values := make([]int64, n), make([]int64, n), make([][]byte, n)
		for i, c := range w.claims {
			seqs[i], untils[i], values[i] = int64(c.seq), c.until, c.value
		}
		p.add(pgInsertClaims, w.tenant, seqs, untils, values, int64(n))
	}
	if n := len(w.uses); n > 0 {
		names, untils := make([][]byte, n), make([]int64, n)
		for i := range w.uses {
			names[i], untils[i] = w.uses[i].digest[:], w.uses[i].until
		}
		p.add(pgInsertUses, w.tenant, names, untils, w.batch, int64(n))
	}
	if n := len(w.keys); n > 0 {
		names, fingerprints, seqs, untils := make([][]byte, n), make([][]byte, n), make([]int64, n), make([]int64, n)
		for i := range w.keys {
			k := &w.keys[i]
			names[i], fingerprints[i], seqs[i], untils[i] = k.digest[:], k.fingerprint[:], int64(k.seq), k.until
		}
		p.add(pgInsertKeys, w.tenant, names, fingerprints, seqs, untils, int64(n))
	}
	if len(w.voids) > 0 {
		p.add(`DELETE FROM claims WHERE tenant = $1 AND seq = ANY($2)`, w.tenant, numbersOf(w.voids))
	}
	if n := w.prune.uses; n > 0 {
		p.add(pgPruneUses, w.tenant, w.expired, int64(n))
	}
	if n := w.prune.keys; n > 0 {
		p.add(pgPruneKeys, w.tenant, w.expired, int64(n))
	}
	if n := w.prune.claims; n > 0 {
		p.add(pgPruneClaims, w.tenant, w.expired, int64(n), int64(w.claimsFrom)).QueryRow(func(row pgx.Row) error {
			return row.Scan(&w.claimsFrom)
		})
	}
	p.add(pgAdvance, w.tenant, int64(w.head.seq), w.head.time, int64(w.head.revocation), edgeBytes(w.head.tree), w.head.pruned, w.head.longest, int64(1))
	return nil
}

// transpose turns entries into one slice for each column.
func transpose(entries []*Entry) ([]any, error) {
	slices := make([]any, columns, columns+1) // and the number of rows
	for n, e := range entries {
		r, err := e.record()
		if err != nil {
			return nil, err
		}
		for i, field := range r.fields() {
			switch v := field.(type) {
			case *string:
				slices[i] = put(slices[i], n, len(entries), *v)
			case *int64:
				slices[i] = put(slices[i], n, len(entries), *v)
			case *[]byte:
				slices[i] = put(slices[i], n, len(entries), *v)
			}
		}
	}
	return slices, nil
}

// put sets element n of the column, and makes the column with its first element.
func put[T any](column any, n, size int, v T) any {
	list, made := column.([]T)
	if !made {
		list = make([]T, size)
		column = list
	}
	list[n] = v
	return column
}

func (st *postgresStore) settle(ctx context.Context, tenant string, e evidence) (bool, error) {
	conn, err := st.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	tx := &postgresTx{st: st, conn: conn}
	var n int
	p := &pipeline{}
	p.lockHead(tenant, &facts{})
	sql, args := e.query(tenant)
	p.add(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
	p.add(sqlTouch, tenant)
	p.add(`COMMIT`)
	if err := committing(conn.Conn(), func() error { return p.send(ctx, conn) }); err != nil {
		tx.rollback()
		return false, err
	}
	conn.Release()
	return n > 0, nil
}
