package tuples

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// journal is a file of entries that are only added: a SQLite database with one table. Each row has
// a digest over itself and the digest of the row before it, so that a damaged row is noticed.
//
// One process has the file at a time. A second one would not see what the first deletes.
type journal struct {
	path   string
	db     *sql.DB // one connection, which holds the lock of the file
	number int64   // of the last row
	digest [sha256.Size]byte
	failed error // set for good by the first failed append: what the file holds is not known then
}

// entry is one change of a Datastore.
type entry struct {
	kind  string
	store string
	id    string // of what is changed, where the body does not have it
	at    int64  // of a tuple's change, in nanoseconds since 1970
	body  []byte // a message of OpenFGA's API
}

// schemaVersion is the user_version of the file.
const schemaVersion = 1

const schema = `CREATE TABLE entries (
	number INTEGER PRIMARY KEY,
	kind   TEXT NOT NULL,
	store  TEXT NOT NULL,
	id     TEXT NOT NULL,
	at     INTEGER NOT NULL,
	body   BLOB NOT NULL,
	digest BLOB NOT NULL
) STRICT`

// openJournal opens the file, creates it if it is missing, and replays all entries in their order.
func openJournal(ctx context.Context, path string, replay func(entry) error) (_ *journal, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createJournal(ctx, path); err != nil {
			return nil, fmt.Errorf("%s: must be a file that can be created; check the folder: %w", path, err)
		}
	}
	j := &journal{path: path}
	defer func() {
		if err != nil && j.db != nil {
			_ = j.db.Close() // nothing was written
		}
	}()
	if j.db, err = openFile(path); err != nil {
		return nil, err
	}
	if err := j.lock(ctx); err != nil {
		return nil, err
	}
	if err := j.check(ctx); err != nil {
		return nil, err
	}
	return j, j.load(ctx, replay)
}

// createJournal makes the file under another name first. So a file under its own name is whole, and
// an empty one is damaged.
func createJournal(ctx context.Context, path string) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(path) + ".new"
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	db, err := openFile(path + ".new")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, fmt.Sprintf("%s; PRAGMA user_version = %d", schema, schemaVersion))
	if err := errors.Join(err, db.Close(), file.Sync()); err != nil {
		return err
	}
	if err := dir.Rename(name, filepath.Base(path)); err != nil {
		return err
	}
	folder, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// openFile opens a file that is there. A transaction is durable when it ends: with a journal that is
// truncated, and not deleted, SQLite syncs its end too. The rows are in one file then, and not in a
// second one that could be lost by itself.
func openFile(path string) (*sql.DB, error) {
	options := url.Values{"mode": {"rw"}, "_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(2000)", "locking_mode(EXCLUSIVE)", "journal_mode(TRUNCATE)", "synchronous(FULL)",
	}}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: absolute, RawQuery: options.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// lock takes the file for this process until it ends, however it ends.
func (j *journal) lock(ctx context.Context) error {
	_, err := j.db.ExecContext(ctx, "BEGIN EXCLUSIVE; COMMIT")
	var fault *sqlite.Error
	if errors.As(err, &fault) && fault.Code()&0xff == sqlitelib.SQLITE_BUSY {
		return fmt.Errorf("%s: must be used by one process; stop the other Deputy with this folder", j.path)
	}
	if err != nil {
		return j.damaged(err)
	}
	return nil
}

// check looks whether the file is a whole database of this version.
func (j *journal) check(ctx context.Context) error {
	var version int
	if err := j.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return j.damaged(err)
	}
	if version > schemaVersion {
		return fmt.Errorf("%s: must be of version %d, not %d; use the Deputy that wrote it", j.path, schemaVersion, version)
	}
	var found string
	if err := j.db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&found); err != nil {
		return j.damaged(err)
	}
	if found != "ok" || version != schemaVersion {
		return j.damaged(errors.New("it is no whole database of this version"))
	}
	return nil
}

func (j *journal) damaged(cause error) error {
	return fmt.Errorf("%s: must be intact; restore it from a copy, or move it away to begin with the relationships of the demo: %w", j.path, cause)
}

// load replays all rows.
func (j *journal) load(ctx context.Context, replay func(entry) error) error {
	rows, err := j.db.QueryContext(ctx, "SELECT number, kind, store, id, at, body, digest FROM entries ORDER BY number")
	if err != nil {
		return j.damaged(err)
	}
	defer rows.Close()
	for rows.Next() {
		var e entry
		var number int64
		var digest []byte
		if err := rows.Scan(&number, &e.kind, &e.store, &e.id, &e.at, &e.body, &digest); err != nil {
			return j.damaged(err)
		}
		next := e.after(j.digest)
		if string(digest) != string(next[:]) {
			return j.damaged(fmt.Errorf("row %d is not what was written after row %d", number, j.number))
		}
		if err := replay(e); err != nil {
			return j.damaged(fmt.Errorf("row %d: %w", number, err))
		}
		j.number, j.digest = number, next
	}
	if err := rows.Err(); err != nil {
		return j.damaged(err)
	}
	return nil
}

// after is the digest of the entry's row, which follows a row with that digest. Each part is
// preceded by its length.
func (e entry) after(digest [sha256.Size]byte) [sha256.Size]byte {
	b := binary.AppendVarint(digest[:], e.at)
	for _, part := range [][]byte{[]byte(e.kind), []byte(e.store), []byte(e.id), e.body} {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	return sha256.Sum256(b)
}

// append returns when the entries are durable, all of them or none. After an error nothing more is
// written: whether the entries are in the file shows at the next start.
func (j *journal) append(entries ...entry) error {
	if j.failed != nil {
		return j.failed
	}
	number, digest := j.number, j.digest
	if err := j.insert(entries, &number, &digest); err != nil {
		j.failed = fmt.Errorf("%s: must take writes; make room for it and start again: %w", j.path, err)
		return j.failed
	}
	j.number, j.digest = number, digest
	return nil
}

// insert goes on when the caller has left: a transaction that is broken off could be in the file.
func (j *journal) insert(entries []entry, number *int64, digest *[sha256.Size]byte) error {
	ctx := context.Background()
	tx, err := j.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, e := range entries {
		*number, *digest = *number+1, e.after(*digest)
		if e.body == nil {
			e.body = []byte{}
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", *number, e.kind, e.store, e.id, e.at, e.body, digest[:]); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

func (j *journal) close() { _ = j.db.Close() } // all that it holds is durable
