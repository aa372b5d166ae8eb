package ledger

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// lockMigration waits until no other migration of the same SQLite file runs, or ctx ends. The lock
// is that of a second, empty SQLite file beside the database. The operating system releases it when
// a process ends, and instances that serve from the database never use it.
func lockMigration(ctx context.Context, path string) (release func() error, err error) {
	path += "-migrate"
	if err := createPrivate(path); err != nil {
		return nil, err
	}
	file := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: "mode=rw&_pragma=busy_timeout(100)"}
	db, err := sql.Open("sqlite", file.String())
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	for {
		_, err := conn.ExecContext(ctx, "BEGIN EXCLUSIVE")
		if err == nil {
			return func() error { return errors.Join(conn.Close(), db.Close()) }, nil
		}
		if !isBusy(err) || ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err(), conn.Close(), db.Close())
		}
	}
}

// createPrivate creates a file that only its owner can read, unless it exists. SQLite gives the
// same permissions to the files that it creates beside it.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func isBusy(err error) bool {
	failed, ok := errors.AsType[*sqlite.Error](err)
	return ok && failed.Code()&0xff == sqlitelib.SQLITE_BUSY
}

// migrateSQLite migrates one file at a time, across processes.
func migrateSQLite(ctx context.Context, dsn string) (err error) {
	path, err := sqlitePath(dsn)
	if err != nil {
		return err
	}
	if err := createPrivate(path); err != nil {
		return err
	}
	release, err := lockMigration(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	db, err := sqliteDB(dsn, "rw", 10*time.Second)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	return errors.Join(migrate(ctx, goose.DialectSQLite3, db, "sqlite", nil), db.Close())
}
