package exchange_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"deputy.example/deputy/client/audit"
	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/ledger"
)

// archive is a world with one tenant whose checkpoints are kept in a file.
type archive struct {
	*exchangetest.World
	database, file string
	key            note.Verifier
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	dir := t.TempDir()
	a := &archive{database: filepath.Join(dir, "ledger.db"), file: filepath.Join(dir, "checkpoint")}
	a.World = exchangetest.New(t, exchangetest.Config{DSN: "sqlite://" + a.database, CheckpointFile: a.file})
	var err error
	if a.key, err = note.NewVerifier(a.Tenant().Checkpoints.VerifierKey()); err != nil {
		t.Fatal(err)
	}
	return a
}

// grow appends grants.
func (a *archive) grow(t *testing.T, w *exchangetest.World, n int) {
	t.Helper()
	for range n {
		w.Chain(t, a.Tenant(), exchangetest.Planner)
	}
}

// record appends entries without the engine, which does not continue a log that differs from the
// signed one.
func record(t *testing.T, w *exchangetest.World, n int) {
	t.Helper()
	for range n {
		_, err := w.Ledger.Append(t.Context(), w.Tenant().Name, &ledger.Draft{
			Kind: ledger.KindRefusal, Caller: exchangetest.Planner, Reason: delegation.AccessDenied,
		})
		must(t, err)
	}
}

// newest reads the checkpoints in the file and in the database.
func (a *archive) newest(t *testing.T, w *exchangetest.World) (file, saved audit.Checkpoint) {
	t.Helper()
	text, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	if file, err = audit.ParseCheckpoint(string(text), a.key); err != nil {
		t.Fatal(err)
	}
	last, err := w.Ledger.LastCheckpoint(t.Context(), a.Tenant().Name)
	if err != nil {
		t.Fatal(err)
	}
	if saved, err = audit.ParseCheckpoint(last.Note, a.key); err != nil {
		t.Fatal(err)
	}
	return file, saved
}

// backup copies the database as it is.
func (a *archive) backup(t *testing.T) (dsn string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup.db")
	a.execute(t, a.database, `VACUUM INTO '`+path+`'`)
	return "sqlite://" + path
}

func (a *archive) execute(t *testing.T, database, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckpointsFollowTheLog(t *testing.T) {
	a := newArchive(t)
	tenant := a.Tenant().Name
	here := a.Engine.Notary(tenant)
	peer := a.Peer(t)
	there := peer.Engine.Notary(tenant)
	if err := a.Engine.Checkpointed(t.Context(), tenant); err == nil {
		t.Error("ready before the log was compared")
	}
	must(t, here(t.Context())) // nothing to sign, and nothing wrong
	must(t, a.Engine.Checkpointed(t.Context(), tenant))
	if _, err := os.Stat(a.file); err == nil {
		t.Error("an empty log was signed")
	}
	for range 3 {
		a.grow(t, a.World, 2)
		must(t, here(t.Context()))
		a.grow(t, a.World, 1)
		must(t, there(t.Context())) // another instance on the same files continues from it
		must(t, here(t.Context()))
		size, root, err := a.Ledger.Tree(t.Context(), tenant)
		must(t, err)
		file, saved := a.newest(t, a.World)
		if file != saved || file.Size != size || file.Root != root || file.Origin != "deputy.example" || time.Since(file.Time) > time.Minute {
			t.Errorf("file %+v, database %+v, log %d %v", file, saved, size, root)
		}
	}
	history, err := os.ReadFile(a.file + ".history")
	must(t, err)
	if n := strings.Count(string(history), "deputy.example\n"); n != 6 {
		t.Errorf("%d checkpoints in the history, want 6:\n%s", n, history)
	}

	// A file that was lost, or not written before a crash, is written again.
	must(t, os.Remove(a.file))
	must(t, here(t.Context()))
	if file, saved := a.newest(t, a.World); file != saved {
		t.Errorf("the file has %+v, the database %+v", file, saved)
	}
}

// TestNoCheckpointOfAnotherLog restores old backups and changes the database. The log must continue
// each earlier checkpoint. Otherwise nothing is signed and the tenant is not ready.
func TestNoCheckpointOfAnotherLog(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(*testing.T, *archive, string) *exchangetest.World
		says string
	}{
		"an old backup": {func(t *testing.T, a *archive, backup string) *exchangetest.World {
			return a.Restored(t, backup)
		}, "has only 4"},
		"an old backup that went on": {func(t *testing.T, a *archive, backup string) *exchangetest.World {
			w := a.Restored(t, backup)
			record(t, w, 20)
			return w
		}, "are not those of the checkpoint"},
		"an edited tree": {func(t *testing.T, a *archive, _ string) *exchangetest.World {
			a.execute(t, a.database, `UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE seq = 1) WHERE seq = 2`)
			a.grow(t, a.World, 1)
			return a.World
		}, "are not those of the checkpoint"},
		"an edited head": {func(t *testing.T, a *archive, _ string) *exchangetest.World {
			a.execute(t, a.database, `UPDATE heads SET tree = CAST((SELECT leaf FROM entries WHERE seq = 1) || substr(tree, 33) AS BLOB)`)
			return a.World
		}, "are not those of the checkpoint"},
		"an edited checkpoint": {func(t *testing.T, a *archive, _ string) *exchangetest.World {
			a.execute(t, a.database, `UPDATE checkpoints SET size = 1`)
			return a.World
		}, "was changed"},
		"a checkpoint of nobody": {func(t *testing.T, a *archive, _ string) *exchangetest.World {
			a.execute(t, a.database, `UPDATE checkpoints SET note = 'deputy.example'`)
			return a.World
		}, "not one of this key"},
		"a file of nobody": {func(t *testing.T, a *archive, _ string) *exchangetest.World {
			must(t, os.WriteFile(a.file, []byte("deputy.example\n9\n"), 0o600))
			return a.World
		}, "is not a checkpoint of this key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArchive(t)
			tenant := a.Tenant().Name
			a.grow(t, a.World, 4)
			must(t, a.Engine.Notary(tenant)(t.Context()))
			backup := a.backup(t)
			a.grow(t, a.World, 3)
			must(t, a.Engine.Notary(tenant)(t.Context()))
			history, err := os.ReadFile(a.file + ".history")
			must(t, err)

			w := test.harm(t, a, backup)
			err = w.Engine.Notary(tenant)(t.Context())
			ready := w.Engine.Checkpointed(t.Context(), tenant)
			if err == nil || !strings.Contains(err.Error(), test.says) || ready == nil {
				t.Errorf("round: %v, want %q; ready: %v", err, test.says, ready)
			}
			if after, err := os.ReadFile(a.file + ".history"); err != nil || string(after) != string(history) {
				t.Errorf("something was signed all the same (%v):\n%s", err, after)
			}
		})
	}
}

// TestOnlyTheFileRemembers is the purpose of the file outside the database: a restored database has
// lost its newest checkpoint too, and a new process has read nothing.
func TestOnlyTheFileRemembers(t *testing.T) {
	a := newArchive(t)
	tenant := a.Tenant().Name
	a.grow(t, a.World, 2)
	round := a.Engine.Notary(tenant)
	must(t, round(t.Context()))
	backup := a.backup(t)
	a.grow(t, a.World, 2)
	must(t, round(t.Context()))
	must(t, os.Remove(a.file))
	w := a.Restored(t, backup)
	a.grow(t, w, 5)
	must(t, w.Engine.Notary(tenant)(t.Context()))
}

// TestCheckpointsRunUntilTold runs the loop.
func TestCheckpointsRunUntilTold(t *testing.T) {
	a := newArchive(t)
	a.grow(t, a.World, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Engine.Checkpoints(ctx) }()
	signed := func() bool { _, err := os.Stat(a.file); return err == nil }
	for deadline := time.Now().Add(10 * time.Second); a.Engine.Checkpointed(ctx, a.Tenant().Name) != nil || !signed(); {
		if time.Now().After(deadline) {
			t.Fatal(a.Log)
		}
		<-time.After(time.Millisecond)
	}
	a.newest(t, a.World)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestCheckpointKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	public, err := exchange.CreateCheckpointKey(path, "https://deputy.example/t/acme")
	must(t, err)
	if _, err := exchange.CreateCheckpointKey(path, "https://deputy.example/t/acme"); err == nil {
		t.Error("a key was replaced")
	}
	info, err := os.Stat(path)
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	key := strings.TrimSpace(string(text))
	c, err := exchange.OpenCheckpointer(key, "https://deputy.example/t/acme", "")
	if err != nil || c.VerifierKey() != public || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, mode %v", err, info.Mode())
	}
	for name, test := range map[string][2]string{
		"another issuer":  {key, "https://deputy.example"},
		"not a key":       {"PRIVATE+KEY+x", "https://deputy.example/t/acme"},
		"the public part": {public, "https://deputy.example/t/acme"},
		"cut short":       {key[:len(key)-4], "https://deputy.example/t/acme"},
	} {
		if _, err := exchange.OpenCheckpointer(test[0], test[1], ""); err == nil || strings.Contains(err.Error(), key[len(key)-20:]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, issuer := range []string{"", "https://", "deputy.example", "https://deputy.example/a+b"} {
		if _, err := exchange.CreateCheckpointKey(filepath.Join(t.TempDir(), "key"), issuer); err == nil {
			t.Errorf("made a key for %q", issuer)
		}
	}
}
