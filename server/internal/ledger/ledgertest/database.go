package ledgertest

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/testservers"
)

// SQLite returns the DSN of an empty, migrated database in a file of the test's own, which is in testservers.Dir.
func SQLite(t testing.TB) (dsn string) {
	t.Helper()
	dsn = Address(filepath.Join(testservers.Dir(t), "ledger.db"))
	Migrate(t, dsn)
	return dsn
}

// Address is the DSN of the SQLite database in a file.
func Address(path string) (dsn string) { return (&url.URL{Scheme: "sqlite", Path: path}).String() }

// Postgres returns the DSN of an empty, migrated database that only this test uses. The package's
// TestMain must call testservers.Main.
func Postgres(t testing.TB) (dsn string) {
	t.Helper()
	return testservers.PostgresLike(t, func(ctx context.Context, dsn string) error { return ledger.Migrate(ctx, dsn) })
}

// Migrate does what ledger.Migrate does. An SQLite file that does not exist becomes a copy of one
// that was migrated before, because most tests begin with such a file and its migrations take
// longer than many a test.
func Migrate(t testing.TB, dsn string) {
	t.Helper()
	path, sqlite := strings.CutPrefix(dsn, "sqlite://")
	path, err := url.PathUnescape(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !sqlite || !os.IsNotExist(err) {
		if err := ledger.Migrate(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		return
	}
	content, err := migratedSQLite()
	if err == nil {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// migratedSQLite is the content of an empty, migrated file. Migrate has closed it, so nothing is
// left in a write-ahead log beside it.
var migratedSQLite = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ledgertest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "ledger.db")
	if err := ledger.Migrate(context.Background(), Address(path)); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})
