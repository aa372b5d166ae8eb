package ledger

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite" // and the driver "sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// sqliteStore has one connection that writes and a few that read. The file's write lock, which
// BEGIN IMMEDIATE takes, is the lock of every tenant's head.
type sqliteStore struct {
	readers *sql.DB
	writers *sql.DB

	turn   chan struct{} // holds one token: its owner may use writer
	writer *sqliteWriter // nil until needed, and after a failure
}

// sqliteWriter is the writing connection with its prepared statements.
type sqliteWriter struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
}

// sqlitePath returns the path of the file that an address names.
func sqlitePath(dsn string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Host != "" || u.User != nil || strings.ContainsAny(dsn, "?#") || u.Path == "" ||
		strings.HasPrefix(u.Path, "//") || strings.ContainsRune(u.Path, 0) {
		return "", errors.New("must be sqlite:/// and the absolute path of the file, without options; write # as %23, ? as %3F and % as %25")
	}
	return u.Path, nil
}

// sqliteDB opens a pool whose every connection is in WAL mode with synchronous=FULL.
func sqliteDB(dsn, mode string, busy time.Duration, pragmas ...string) (*sql.DB, error) {
	path, err := sqlitePath(dsn)
	if err != nil {
		return nil, err
	}
	q := url.Values{"mode": {mode}, "_txlock": {"immediate"}}
	q["_pragma"] = append([]string{"busy_timeout(" + strconv.FormatInt(busy.Milliseconds(), 10) + ")",
		"journal_mode(WAL)", "synchronous(FULL)"}, pragmas...)
	file := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return sql.Open("sqlite", file.String())
}

func openSQLite(ctx context.Context, dsn string, config Config) (store, error) {
	path, err := sqlitePath(dsn)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, errUnmigrated
	}
	st := &sqliteStore{turn: make(chan struct{}, 1)}
	// Erased values are overwritten in their page, not only unlinked.
	if st.writers, err = sqliteDB(dsn, "rw", config.attempt(), "secure_delete(FAST)"); err != nil {
		return nil, err
	}
	if st.readers, err = sqliteDB(dsn, "rw", config.attempt(), "query_only(1)"); err != nil {
		return nil, err
	}
	st.writers.SetMaxOpenConns(1)
	st.readers.SetMaxOpenConns(4)
	st.readers.SetMaxIdleConns(4)
	st.turn <- struct{}{}
	if err := st.check(ctx); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return st, nil
}

// check requires the schema and the settings for durability.
func (st *sqliteStore) check(ctx context.Context) error {
	var version int64
	if err := st.writers.QueryRowContext(ctx, sqlVersion).Scan(&version); err != nil {
		if strings.Contains(err.Error(), "no such table") {
			return errUnmigrated
		}
		return err
	}
	if err := checkVersion(version); err != nil {
		return err
	}
	var journal string
	var synchronous int
	if err := st.writers.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&journal); err != nil {
		return err
	}
	if err := st.writers.QueryRowContext(ctx, `PRAGMA synchronous`).Scan(&synchronous); err != nil {
		return err
	}
	if journal != "wal" || synchronous != 2 {
		return fmt.Errorf("SQLite uses journal_mode=%s and synchronous=%d, but only wal and 2 (FULL) keep what was committed: put the file on a local disk that supports WAL", journal, synchronous)
	}
	return nil
}

// sqliteRevocations reads no clock: the file has none but this machine's.
const sqliteRevocations = `SELECT 0, 0` + sqlRevocations

func (st *sqliteStore) revocations() string { return sqliteRevocations }

func (st *sqliteStore) time(context.Context) (time.Time, error) { return time.Time{}, nil }

func (st *sqliteStore) ready(ctx context.Context) error {
	var version int64
	if err := st.readers.QueryRowContext(ctx, sqlVersion).Scan(&version); err != nil {
		return err
	}
	return checkVersion(version)
}

func (st *sqliteStore) close() error {
	<-st.turn // no transaction runs, and none can begin
	st.discard()
	return errors.Join(st.readers.Close(), st.writers.Close())
}

// sqlQuerier adapts the functions of database/sql.
type sqlQuerier func(ctx context.Context, sql string, args ...any) (*sql.Rows, error)

func (q sqlQuerier) query(ctx context.Context, sql string, args ...any) (rows, error) {
	r, err := q(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return sqlRows{r}, nil
}

type sqlRows struct{ *sql.Rows }

func (r sqlRows) Close() { _ = r.Rows.Close() } // Err has returned the error

func (st *sqliteStore) query(ctx context.Context, sql string, args ...any) (rows, error) {
	return sqlQuerier(st.readers.QueryContext).query(ctx, sql, args...)
}

func (st *sqliteStore) among(ctx context.Context, sql string, tenants []string) (rows, error) {
	list, err := json.Marshal(tenants)
	if err != nil {
		return nil, err
	}
	return st.query(ctx, sql+` IN (SELECT value FROM json_each($1))`, string(list))
}

func (st *sqliteStore) view(ctx context.Context, f func(querier) error) error {
	conn, err := st.readers.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `BEGIN DEFERRED`); err != nil {
		return err
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`)
	return f(sqlQuerier(conn.QueryContext))
}

// change blocks all other writers while f runs, because there is one lock.
func (st *sqliteStore) change(ctx context.Context, f func(changer) error) error {
	tx, err := st.start(ctx)
	if err != nil {
		return err
	}
	if err = f(tx); err == nil {
		err = tx.exec(`COMMIT`)
	}
	if err != nil {
		tx.rollback()
		return err
	}
	st.turn <- struct{}{}
	return nil
}

// sqliteTx is a transaction on the writing connection. Its statements take no cancellable context:
// they run in this process and have all locks they need, and an interrupted COMMIT would leave its
// outcome open. submit does not wait for a disk that hangs.
type sqliteTx struct {
	st *sqliteStore
	w  *sqliteWriter
}

func (st *sqliteStore) start(ctx context.Context) (*sqliteTx, error) {
	select {
	case <-st.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	tx := &sqliteTx{st: st}
	if st.writer == nil {
		conn, err := st.writers.Conn(ctx)
		if err != nil {
			st.turn <- struct{}{}
			return nil, err
		}
		st.writer = &sqliteWriter{conn: conn, prepared: make(map[string]*sql.Stmt)}
	}
	tx.w = st.writer
	if err := tx.exec(`BEGIN IMMEDIATE`); err != nil {
		tx.rollback()
		return nil, err
	}
	return tx, nil
}

// discard closes the writing connection, which also ends a transaction that is open on it.
func (st *sqliteStore) discard() {
	if st.writer == nil {
		return
	}
	for _, stmt := range st.writer.prepared {
		_ = stmt.Close()
	}
	_ = st.writer.conn.Raw(func(any) error { return driver.ErrBadConn }) // keeps it out of the pool
	_ = st.writer.conn.Close()
	st.writer = nil
}

func (tx *sqliteTx) stmt(sql string) (*sql.Stmt, error) {
	if stmt := tx.w.prepared[sql]; stmt != nil {
		return stmt, nil
	}
	stmt, err := tx.w.conn.PrepareContext(context.Background(), sql)
	if err != nil {
		return nil, err
	}
	tx.w.prepared[sql] = stmt
	return stmt, nil
}

func (tx *sqliteTx) exec(sql string, args ...any) error {
	_, err := tx.change(context.Background(), sql, args...)
	return err
}

// put writes one row.
func (tx *sqliteTx) put(sql string, args ...any) error {
	return keep(context.Background(), tx, 1, sql, args...)
}

func (tx *sqliteTx) change(_ context.Context, sql string, args ...any) (int64, error) {
	stmt, err := tx.stmt(sql)
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (tx *sqliteTx) query(_ context.Context, sql string, args ...any) (rows, error) {
	stmt, err := tx.stmt(sql)
	if err != nil {
		return nil, err
	}
	r, err := stmt.QueryContext(context.Background(), args...)
	if err != nil {
		return nil, err
	}
	return sqlRows{r}, nil
}

func (tx *sqliteTx) rollback() {
	if _, err := tx.w.conn.ExecContext(context.Background(), `ROLLBACK`); err != nil {
		tx.st.discard()
	}
	tx.st.turn <- struct{}{}
}

func (st *sqliteStore) begin(ctx context.Context, tenant string, q questions) (transaction, facts, error) {
	tx, err := st.start(ctx)
	if err != nil {
		return nil, facts{}, err
	}
	found, err := tx.answer(tenant, q)
	if err != nil {
		tx.rollback()
		return nil, facts{}, err
	}
	return tx, found, nil
}

// answer looks up one row at a time: a prepared look-up in the same process takes microseconds.
func (tx *sqliteTx) answer(tenant string, q questions) (facts, error) {
	ctx := context.Background()
	found := newFacts()
	var locked headRow
	there, err := tx.one(sqlLockRow, []any{tenant}, locked.columns()...)
	if err == nil && !there { // a new tenant
		err = tx.exec(sqlNewHead, tenant)
	}
	if err != nil {
		return found, err
	}
	found.head = locked.head()
	if found.witness, err = tx.witness(tenant, q); err != nil {
		return found, err
	}
	if found.head.revocation != q.revokedAfter { // otherwise the head itself shows that there is nothing new
		rows, err := tx.query(ctx, tx.st.revocations(), tenant, int64(q.revokedAfter), q.revokedUntil, everything)
		if err != nil {
			return found, err
		}
		n, err := scanRevocations(rows, q.now)
		if err != nil {
			return found, err
		}
		found.head.revocation, found.revocations = n.newest, n.list
	}
	for _, name := range q.uses {
		if found.used[name], err = tx.exists(`SELECT 1 FROM single_uses WHERE tenant = $1 AND digest = $2`, tenant, name[:]); err != nil {
			return found, err
		}
	}
	for _, id := range q.ids {
		if found.ids[id], err = tx.exists(`SELECT 1 FROM entries WHERE tenant = $1 AND jti = $2 AND jti <> ''`, tenant, id); err != nil {
			return found, err
		}
	}
	for _, seq := range q.voids {
		if found.grants[seq], err = tx.exists(`SELECT 1 FROM entries WHERE tenant = $1 AND seq = $2 AND kind = 'grant'`, tenant, int64(seq)); err != nil {
			return found, err
		}
	}
	for _, name := range q.keys {
		key, err := lookUpKey(ctx, tx, tenant, name[:], q.now)
		if err != nil {
			return found, err
		}
		if key != nil {
			found.keys[name] = *key
		}
	}
	return found, nil
}

// witness looks up what was known.
func (tx *sqliteTx) witness(tenant string, q questions) (w witness, err error) {
	if q.confirmable() {
		if confirmed, err := tx.exists(sqlConfirm, q.confirm(tenant)...); confirmed || err != nil {
			return q.confirmed(), err
		}
	}
	_, err = tx.one(sqlMemory, []any{tenant, int64(q.known.seq)}, w.fields()...)
	return w, err
}

// one reads at most one row.
func (tx *sqliteTx) one(sql string, args []any, into ...any) (found bool, err error) {
	r, err := tx.query(context.Background(), sql, args...)
	if err != nil {
		return false, err
	}
	defer r.Close()
	if r.Next() {
		found, err = true, r.Scan(into...)
	}
	return found, errors.Join(err, r.Err())
}

func (tx *sqliteTx) exists(sql string, args ...any) (bool, error) {
	var one int
	return tx.one(sql, args, &one)
}

func (tx *sqliteTx) commit(_ context.Context, w *writes) error {
	if err := tx.write(w); err != nil {
		tx.rollback()
		return err
	}
	if err := tx.exec(`COMMIT`); err != nil {
		// Whether SQLite still has the transaction depends on where it failed.
		tx.rollback()
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	tx.st.turn <- struct{}{}
	return nil
}

var sqliteInsert = `INSERT INTO entries (` + entryColumns + `) VALUES (?` + strings.Repeat(`, ?`, columns-1) + `)`

func (tx *sqliteTx) write(w *writes) error {
	var values [columns]any
	for _, e := range w.entries {
		r, err := e.record()
		if err != nil {
			return err
		}
		for i, field := range r.fields() { // database/sql would follow pointers by reflection
			switch v := field.(type) {
			case *string:
				values[i] = *v
			case *int64:
				values[i] = *v
			case *[]byte:
				values[i] = *v
			}
		}
		if err := tx.put(sqliteInsert, values[:]...); err != nil {
			return taken(err)
		}
	}
	for _, n := range w.nodes {
		if err := tx.put(`INSERT INTO tree_nodes (tenant, level, n, hash) VALUES (?, ?, ?, ?)`,
			w.tenant, int64(n.Level), int64(n.N), n.Hash[:]); err != nil {
			return err
		}
	}
	for _, c := range w.claims {
		if err := tx.put(`INSERT INTO claims (tenant, seq, until, value) VALUES (?, ?, ?, ?)`,
			w.tenant, int64(c.seq), c.until, c.value); err != nil {
			return err
		}
	}
	for _, u := range w.uses {
		if err := tx.put(`INSERT INTO single_uses (tenant, digest, until, batch) VALUES (?, ?, ?, ?)`,
			w.tenant, u.digest[:], u.until, w.batch); err != nil {
			return err
		}
	}
	for _, k := range w.keys {
		if err := tx.put(`INSERT INTO idempotency_keys (tenant, digest, fingerprint, seq, until) VALUES (?, ?, ?, ?, ?)`,
			w.tenant, k.digest[:], k.fingerprint[:], int64(k.seq), k.until); err != nil {
			return err
		}
	}
	for _, seq := range w.voids {
		if err := tx.exec(`DELETE FROM claims WHERE tenant = ? AND seq = ?`, w.tenant, int64(seq)); err != nil {
			return err
		}
	}
	if err := tx.prune(w); err != nil {
		return err
	}
	return tx.put(sqlHead, w.tenant, int64(w.head.seq), w.head.time, int64(w.head.revocation), edgeBytes(w.head.tree), w.head.pruned, w.head.longest)
}

// taken returns errTaken if that is the cause, which the columns of the index in the text show.
func taken(err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) && se.Code() == sqlitelib.SQLITE_CONSTRAINT_UNIQUE && strings.Contains(se.Error(), "entries.jti") {
		return errTaken
	}
	return err
}

func (tx *sqliteTx) prune(w *writes) (err error) {
	if n := w.prune.uses; n > 0 {
		err = tx.exec(limited(sqlPruneUses, n), w.tenant, w.expired)
	}
	if n := w.prune.keys; n > 0 && err == nil {
		err = tx.exec(limited(sqlPruneKeys, n), w.tenant, w.expired)
	}
	if n := w.prune.claims; n > 0 && err == nil {
		err = tx.exec(sqlPruneClaims, w.tenant, w.expired, int64(n))
	}
	return err
}

// limited completes a statement that ends with LIMIT.
func limited(sql string, limit int) string { return sql + strconv.Itoa(limit) + ")" }

func (st *sqliteStore) settle(ctx context.Context, tenant string, e evidence) (bool, error) {
	tx, err := st.start(ctx)
	if err != nil {
		return false, err
	}
	sql, args := e.query(tenant)
	var n int
	_, err = tx.one(sql, args, &n)
	if err == nil {
		err = tx.exec(sqlTouch, tenant)
	}
	if err == nil {
		err = tx.exec(`COMMIT`)
	}
	if err != nil {
		tx.rollback()
		return false, err
	}
	tx.st.turn <- struct{}{}
	return n > 0, nil
}
