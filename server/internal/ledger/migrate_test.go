package ledger_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/server/internal/ledger"
)

// TestMigrationsAtOnce: of several migrations of one SQLite file that begin together, each returns
// once the schema is up to date.
func TestMigrationsAtOnce(t *testing.T) {
	for range 5 {
		dsn := "sqlite://" + filepath.Join(t.TempDir(), "ledger.db")
		var all errgroup.Group
		for range 4 {
			all.Go(func() error { return ledger.Migrate(t.Context(), dsn) })
		}
		if err := all.Wait(); err != nil {
			t.Fatal(err)
		}
		opened(t, dsn, ledger.Config{})
	}
}
