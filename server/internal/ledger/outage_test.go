package ledger_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/ledger/ledgertest"
	"deputy.example/deputy/server/internal/testservers"
)

// mostWait is what a caller may have to wait for the word unavailable.
const mostWait = 2 * time.Second

// unavailable asks for everything that needs the database, and for an answer in time. It has the
// patience of package exchange: who asks for fresh revocations may have to wait for two reads.
func unavailable(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 1800*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for name, call := range map[string]func() error{
		"Append":      func() error { _, err := l.Append(ctx, tenant, everything()); return err },
		"Spend":       func() error { return l.Spend(ctx, tenant, everything().Uses) },
		"Revocations": func() error { _, err := l.Revocations(ctx, tenant, true); return err },
		"EntryAt":     func() error { _, err := l.EntryAt(ctx, tenant, 1); return err },
		"Search":      func() error { _, _, err := l.Search(ctx, tenant, ledger.Query{Limit: 1}); return err },
		"AgentView":   func() error { _, err := l.AgentView(ctx, tenant, "a:b", 1); return err },
		"Descendants": func() error { _, _, err := l.Descendants(ctx, tenant, "x", 0, 1); return err },
		"Voided":      func() error { _, err := l.Voided(ctx, tenant, []uint64{1}); return err },
		"Lookup":      func() error { _, err := l.Lookup(ctx, tenant, "a:b", "k"); return err },
		"Ready":       func() error { return l.Ready(ctx) },
	} {
		wg.Go(func() {
			start := time.Now()
			err := call()
			if took := time.Since(start); reason(err) != delegation.DependencyDown || took > mostWait {
				t.Errorf("%s: %v after %v, want unavailable within %v", name, err, took, mostWait)
			}
		})
	}
	wg.Wait()
}

// recovers waits for the ledger to work again by itself.
func recovers(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		_, err := l.Append(t.Context(), tenant, everything())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not recovered: %v", err)
		}
	}
	if err := l.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	checked(t, l)
}

func TestPostgresOutages(t *testing.T) {
	server := testservers.NewPostgres(t)
	ledgertest.Migrate(t, server.DSN)
	l := opened(t, server.DSN, ledger.Config{})
	recovers(t, l)
	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"paused", server.Pause, server.Resume},
		{"stopped", server.Stop, server.Start},
		{"killed", server.Kill, server.Start},
	} {
		t.Run(outage.name, func(t *testing.T) {
			outage.begin()
			unavailable(t, l)
			unavailable(t, l) // also when nothing is left in the pool
			outage.end()
			recovers(t, l)
		})
	}
}

// writers append until stopped, and remember what was acknowledged.
type writers struct {
	wg    sync.WaitGroup
	stop  atomic.Bool
	mu    sync.Mutex
	acked map[string][]byte // jti to claims
}

func write(t *testing.T, n int, ls ...*ledger.Ledger) *writers {
	w := &writers{acked: map[string][]byte{}}
	for i := range n {
		w.wg.Go(func() {
			for !w.stop.Load() {
				d := everything()
				r, err := ls[i%len(ls)].Append(t.Context(), tenant, d)
				switch {
				case err == nil:
					w.mu.Lock()
					w.acked[d.ID] = r.Claims
					w.mu.Unlock()
				case reason(err) != delegation.DependencyDown:
					t.Errorf("under load: %v", err)
				}
			}
		})
	}
	return w
}

func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// atLeast waits until n more drafts have been acknowledged.
func (w *writers) atLeast(t *testing.T, n int) {
	t.Helper()
	want, deadline := w.count()+n, time.Now().Add(20*time.Second)
	for w.count() < want {
		if time.Now().After(deadline) {
			t.Fatalf("%d acknowledged, waiting for %d", w.count(), want)
		}
		<-time.After(time.Millisecond)
	}
}

// recorded ends the load and looks for every acknowledged grant.
func (w *writers) recorded(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	w.stop.Store(true)
	w.wg.Wait()
	for jti, claims := range w.acked {
		if e, err := l.Entry(t.Context(), tenant, jti); err != nil || !e.MatchesClaims(claims) {
			t.Fatalf("%s was acknowledged and is not recorded: %v", jti, err)
		}
	}
	checked(t, l)
}

// TestKilledUnderLoad kills PostgreSQL while two instances append.
func TestKilledUnderLoad(t *testing.T) {
	server := testservers.NewPostgres(t)
	dsn := server.DSN
	ledgertest.Migrate(t, dsn)
	l, other := opened(t, dsn, ledger.Config{}), opened(t, dsn, ledger.Config{})
	w := write(t, 8, l, other)
	for range 3 {
		w.atLeast(t, 100)
		server.Kill()
		server.Start()
	}
	w.atLeast(t, 100)
	w.recorded(t, l)
}

// TestTerminatedUnderLoad has an administrator end all sessions, again and again.
func TestTerminatedUnderLoad(t *testing.T) {
	dsn := databases["postgres"](t)
	l, other := opened(t, dsn, ledger.Config{}), opened(t, dsn, ledger.Config{})
	w := write(t, 8, l, other)
	for range 20 {
		w.atLeast(t, 10)
		execute(t, dsn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	}
	w.recorded(t, l)
}

// TestLockedByAnother has someone else hold the lock that every append needs.
func TestLockedByAnother(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, ledger.Config{})
		if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
			t.Fatal(err)
		}
		release := lockHead(t, dsn)
		start := time.Now()
		if _, err := l.Append(t.Context(), tenant, everything()); reason(err) != delegation.DependencyDown {
			t.Errorf("Append: %v, want unavailable", err)
		}
		if took := time.Since(start); took > mostWait {
			t.Errorf("answered after %v", took)
		}
		if _, err := l.Revocations(t.Context(), tenant, true); err != nil {
			t.Errorf("reading needs no lock: %v", err)
		}
		release()
		recovers(t, l)
	})
}

// lockHead takes the tenant's head from another connection.
func lockHead(t *testing.T, dsn string) (release func()) {
	t.Helper()
	if path, ok := strings.CutPrefix(dsn, "sqlite://"); ok {
		db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = tx.Rollback(); _ = db.Close() }
	}
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT 1 FROM heads FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(ctx); _ = conn.Close(ctx) }
}

// TestOneRefusedEntryFailsItsBatch has the database refuse one entry: no draft may be half
// recorded.
func TestOneRefusedEntryFailsItsBatch(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		l := opened(t, dsn, ledger.Config{})
		trigger := `CREATE TRIGGER full BEFORE INSERT ON claims BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END`
		mend := `DROP TRIGGER full`
		if !strings.HasPrefix(dsn, "sqlite") {
			trigger = `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$;
				CREATE TRIGGER full_disk BEFORE INSERT ON claims FOR EACH ROW EXECUTE FUNCTION full_disk()`
			mend = `DROP TRIGGER full_disk ON claims`
		}
		execute(t, dsn, trigger)
		d := everything()
		if _, err := l.Append(t.Context(), tenant, d); reason(err) != delegation.DependencyDown {
			t.Errorf("Append: %v, want unavailable", err)
		}
		checked(t, l)
		execute(t, dsn, mend)
		if r, err := l.Append(t.Context(), tenant, d); err != nil || r.Seq != 1 || r.Existing {
			t.Errorf("the same draft afterwards: %+v, %v", r, err)
		}
		checked(t, l)
	})
}

// The path of a file may have characters with a meaning in addresses, if they are encoded.
func TestEncodedPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a#1?b%20c", "ledger.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	dsn := ledgertest.Address(path)
	ledgertest.Migrate(t, dsn)
	l := opened(t, dsn, ledger.Config{})
	if _, err := l.Append(t.Context(), tenant, everything()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	open := func(dsn string) error {
		l, err := ledger.Open(t.Context(), dsn, ledger.Config{})
		if err == nil {
			_ = l.Close()
		}
		return err
	}
	wants := func(dsn, words string) {
		t.Helper()
		if err := open(dsn); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want an error with %q", err, words)
		}
	}
	wants("", "must begin with")
	wants("mysql://x", "must begin with")
	wants("sqlite://relative.db", "absolute path")
	wants("sqlite:///tmp/a.db?mode=memory", "absolute path")
	wants("postgres://user:secret@host:notaport/x", "malformed")
	for _, dsn := range []string{"sqlite:///tmp/a#1.db", "sqlite:///tmp/a.db#", "postgres://user:secret@host/a#1"} {
		wants(dsn, "no fragment")
		if err := ledger.Migrate(t.Context(), dsn); err == nil || !strings.Contains(err.Error(), "no fragment") || strings.Contains(err.Error(), "secret") {
			t.Errorf("migrating %s: %v", dsn, err)
		}
	}
	for _, dsn := range []string{"sqlite:tmp/a.db", "sqlite://user@/tmp/a.db", "sqlite:////tmp/a.db", "sqlite:///tmp/a.db?", "sqlite:///tmp/a.db%00b", "sqlite://"} {
		wants(dsn, "absolute path")
	}
	wants("sqlite://"+t.TempDir()+"/none.db", `run "deputyd migrate"`)
	wants(testservers.Postgres(t), `run "deputyd migrate"`)
	wants(databases["postgres"](t)+"&synchronous_commit=off", "synchronous_commit=off")
	wants(databases["postgres"](t)+"&synchronous_commit=local", "synchronous_commit=local")
	for _, database := range databases {
		dsn := database(t)
		if err := ledger.Migrate(t.Context(), dsn); err != nil {
			t.Errorf("migrating again: %v", err)
		}
		execute(t, dsn, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)`)
		wants(dsn, "newer deputyd")
		execute(t, dsn, `DELETE FROM goose_db_version WHERE version_id > 0`)
		wants(dsn, `run "deputyd migrate"`)
	}
	if err := open("postgres://user:secret@host:notaport/x"); strings.Contains(err.Error(), "secret") {
		t.Error("the error repeats the password")
	}
}
