package ledger_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
)

const tenant = "acme"

// patient is for tests that ask what happens and not how soon, on a machine that may be busy.
var patient = ledger.Config{Timeout: 20 * time.Second}

// databases make an empty, migrated database of either kind.
var databases = map[string]func(testing.TB) string{
	"sqlite":   ledgertest.SQLite,
	"postgres": ledgertest.Postgres,
}

// onBoth runs the test on both databases.
func onBoth(t *testing.T, test func(t *testing.T, dsn string)) {
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, database(t))
		})
	}
}

func opened(t testing.TB, dsn string, config ledger.Config) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), dsn, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// openedWith opens a ledger whose statements fail where at returns an error: those of its writing
// connection in SQLite, and all of them in PostgreSQL.
func openedWith(t testing.TB, dsn string, config ledger.Config, at func(point string) error) *ledger.Ledger {
	t.Helper()
	if strings.HasPrefix(dsn, "postgres") {
		return opened(t, proxied(t, dsn, at), config)
	}
	l := opened(t, dsn, config)
	l.WrapWriter(t, func(c driver.Conn) driver.Conn { return faultyConn{c, at} })
	return l
}

func checked(t testing.TB, l *ledger.Ledger) {
	t.Helper()
	if err := ledgertest.Check(context.WithoutCancel(t.Context()), l, tenant); err != nil {
		t.Error(err)
	}
}

func reason(err error) delegation.Reason {
	if err == nil {
		return ""
	}
	return delegation.AsError(err).Reason
}

// execute changes a database behind the ledger's back.
func execute(t testing.TB, dsn, statement string) {
	t.Helper()
	if err := tryExecute(t.Context(), dsn, statement); err != nil {
		t.Fatal(err)
	}
}

func tryExecute(ctx context.Context, dsn, statement string) error {
	if path, ok := strings.CutPrefix(dsn, "sqlite://"); ok {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, statement)
		return errors.Join(err, db.Close())
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}

func TestSuite(t *testing.T) {
	for name, database := range databases {
		t.Run(name, func(t *testing.T) { ledgertest.Suite(t, database) })
	}
}

func TestClosingAgainDoesNothing(t *testing.T) {
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			l := opened(t, database(t), ledger.Config{}) // whose cleanup closes it a third time
			for range 2 {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			if _, err := l.Append(t.Context(), tenant, everything()); err == nil {
				t.Error("a closed ledger takes drafts")
			}
		})
	}
}
