package ledger

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// schemaVersion is the migration that this program was built for.
const schemaVersion = 13

// sqlVersion reads the newest migration of a database.
const sqlVersion = `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`

// Migrate creates the schema or brings it up to date. It may run again, and while instances of the
// previous version are serving: they refuse everything from then on.
func Migrate(ctx context.Context, dsn string) error {
	err := CheckAddress(dsn)
	if err != nil {
		return fmt.Errorf("ledger: migrate: the address of the database %w", err)
	}
	if isSQLite(dsn) {
		err = migrateSQLite(ctx, dsn)
	} else {
		err = migratePostgres(ctx, dsn)
	}
	if err != nil {
		return fmt.Errorf("ledger: migrate: %w", err)
	}
	return nil
}

func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, folder string, locker lock.SessionLocker) error {
	provider, err := migrator(dialect, db, folder, locker)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

func migrator(dialect goose.Dialect, db *sql.DB, folder string, locker lock.SessionLocker) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+folder)
	if err != nil {
		return nil, err
	}
	tree := func(ctx context.Context, tx *sql.Tx) error { return plantTree(ctx, tx, dialect) }
	options := []goose.ProviderOption{
		goose.WithDisableGlobalRegistry(true),
		goose.WithGoMigrations(goose.NewGoMigration(2, &goose.GoFunc{RunTx: tree}, nil)),
	}
	if locker != nil {
		options = append(options, goose.WithSessionLocker(locker))
	}
	return goose.NewProvider(dialect, db, files, options...)
}

// checkVersion returns what to do about a schema of another version.
func checkVersion(version int64) error {
	switch {
	case version < schemaVersion:
		return fmt.Errorf("the database has schema version %d, this program needs %d: run \"deputyd migrate\"", version, schemaVersion)
	case version > schemaVersion:
		return fmt.Errorf("the database has schema version %d, but this program needs %d: a newer deputyd migrated it; run that version, because \"deputyd migrate\" never goes back", version, schemaVersion)
	}
	return nil
}

var errUnmigrated = errors.New("the database has no schema yet: run \"deputyd migrate\"")
