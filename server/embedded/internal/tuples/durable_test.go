package tuples

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/tuple"
	"google.golang.org/protobuf/types/known/structpb"
	"modernc.org/sqlite"
	"pgregory.net/rapid"
)

func open(t testing.TB, path string) *Datastore {
	t.Helper()
	d, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func newFile(t testing.TB) string { return filepath.Join(t.TempDir(), "relationships.db") }

func without(k *openfgav1.TupleKey) *openfgav1.TupleKeyWithoutCondition {
	return tuple.TupleKeyToTupleKeyWithoutCondition(k)
}

// state is all that readers can see of a store: each tuple with its time, and each change with its
// time and token.
func state(t testing.TB, d *Datastore, store string) (lines []string) {
	t.Helper()
	page, _, err := d.ReadPage(context.Background(), store, storage.ReadFilter{}, storage.ReadPageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range page {
		lines = append(lines, found.String())
	}
	slices.Sort(lines) // protobuf's text form is not stable between processes, and this is one
	for from := ""; ; {
		changes, next, err := d.ReadChanges(context.Background(), store, storage.ReadChangesFilter{}, storage.ReadChangesOptions{Pagination: storage.PaginationOptions{PageSize: 1, From: from}})
		if errors.Is(err, storage.ErrNotFound) {
			return lines
		}
		if err != nil || next <= from {
			t.Fatalf("token %s after %s: %v", next, from, err)
		}
		lines, from = append(lines, next+" "+changes[0].String()), next
	}
}

// Whatever is written and deleted, a file that is opened again holds exactly what was acknowledged:
// tuples with their conditions and times, the changelog with its tokens, stores, models, assertions.
func TestOpenedAgain(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), rapid.StringMatching("[a-z]{12}").Draw(rt, "name"))
		d := open(t, path)
		for range rapid.IntRange(1, 4).Draw(rt, "runs") {
			for range rapid.IntRange(0, 6).Draw(rt, "writes") {
				store := rapid.SampledFrom([]string{"s", "other"}).Draw(rt, "store")
				var writes storage.Writes
				var deletes storage.Deletes
				for range rapid.IntRange(1, 3).Draw(rt, "tuples") {
					k := tuple.NewTupleKey("doc:1", "viewer", fmt.Sprintf("user:%d", rapid.IntRange(0, 5).Draw(rt, "user")))
					switch rapid.IntRange(0, 2).Draw(rt, "what") {
					case 0:
						deletes = append(deletes, without(k))
					case 1:
						hours, err := structpb.NewStruct(map[string]any{"hour": 17, "place": "home"})
						if err != nil {
							rt.Fatal(err)
						}
						writes = append(writes, tuple.NewTupleKeyWithCondition(k.GetObject(), k.GetRelation(), k.GetUser(), "hours", hours))
					default:
						writes = append(writes, k)
					}
				}
				_ = d.Write(t.Context(), store, deletes, writes, storage.WithOnMissingDelete(storage.OnMissingDeleteIgnore)) // a duplicate is refused
			}
			if rapid.IntRange(0, 9).Draw(rt, "delete") == 0 {
				if err := d.DeleteStore(t.Context(), "other"); err != nil {
					rt.Fatal(err)
				}
			}
			before := append(state(t, d, "s"), state(t, d, "other")...)
			d.Close()
			d = open(t, path)
			if after := append(state(t, d, "s"), state(t, d, "other")...); !slices.Equal(before, after) {
				rt.Fatalf("it was\n%s\nand is\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		}
		d.Close()
	})
}

func TestOpenedAgainHasStoresAndModels(t *testing.T) {
	path, ctx := newFile(t), t.Context()
	d := open(t, path)
	made, err := d.CreateStore(ctx, &openfgav1.Store{Id: "s", Name: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	_, errOther := d.CreateStore(ctx, &openfgav1.Store{Id: "gone", Name: "gone"})
	asserted := []*openfgav1.Assertion{{TupleKey: &openfgav1.AssertionTupleKey{Object: "doc:1", Relation: "viewer", User: "user:a"}, Expectation: true}}
	if err := errors.Join(errOther, d.DeleteStore(ctx, "gone"),
		d.WriteAuthorizationModel(ctx, "s", &openfgav1.AuthorizationModel{Id: "first", SchemaVersion: "1.1", TypeDefinitions: []*openfgav1.TypeDefinition{{Type: "user"}}}),
		d.WriteAuthorizationModel(ctx, "s", &openfgav1.AuthorizationModel{Id: "second", SchemaVersion: "1.1", TypeDefinitions: []*openfgav1.TypeDefinition{{Type: "user"}}}),
		d.WriteAssertions(ctx, "s", "second", asserted)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateStore(ctx, &openfgav1.Store{Id: "s"}); !errors.Is(err, storage.ErrCollision) {
		t.Errorf("the same store again: %v", err)
	}
	d.Close()
	d = open(t, path)
	if found, err := d.GetStore(ctx, "s"); err != nil || found.String() != made.String() {
		t.Errorf("the store is %v, %v; it was %v", found, err, made)
	}
	if _, err := d.GetStore(ctx, "gone"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a deleted store: %v", err)
	}
	latest, err := d.FindLatestAuthorizationModel(ctx, "s")
	if err != nil || latest.GetId() != "second" {
		t.Errorf("the latest model is %v, %v", latest, err)
	}
	if first, err := d.ReadAuthorizationModel(ctx, "s", "first"); err != nil || first.GetSchemaVersion() != "1.1" {
		t.Errorf("the first model is %v, %v", first, err)
	}
	if found, err := d.ReadAssertions(ctx, "s", "second"); err != nil || len(found) != 1 || found[0].String() != asserted[0].String() {
		t.Errorf("the assertions are %v, %v", found, err)
	}
}

// Changes after a restart follow those before it, also within the same millisecond: a reader that
// goes on from a token misses none.
func TestTokensGoOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, token := newFile(t), ""
		for i := range 20 {
			d := open(t, path)
			write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", fmt.Sprintf("user:%d", i))})
			changes, next, err := d.ReadChanges(t.Context(), "s", storage.ReadChangesFilter{}, storage.ReadChangesOptions{Pagination: storage.PaginationOptions{From: token}})
			if err != nil || len(changes) != 1 || changes[0].GetTupleKey().GetUser() != fmt.Sprintf("user:%d", i) {
				t.Fatalf("restart %d: after %q come %v, %v", i, token, changes, err)
			}
			token = next
			d.Close()
		}
	})
}

func TestConcurrentWritesAreDurable(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	d := open(t, path)
	var all sync.WaitGroup
	var mu sync.Mutex
	acknowledged := make(map[string]bool)
	for worker := range 8 {
		all.Go(func() {
			for i := range 20 {
				user := fmt.Sprintf("user:%d-%d", worker, i)
				k := tuple.NewTupleKey("doc:1", "viewer", user)
				if err := d.Write(t.Context(), "s", nil, storage.Writes{k}); err != nil {
					t.Error(err)
				}
				contested := tuple.NewTupleKey("doc:1", "owner", fmt.Sprintf("user:%d", i))
				won := d.Write(t.Context(), "s", nil, storage.Writes{contested}) == nil
				if i%3 == 0 {
					if err := d.Write(t.Context(), "s", storage.Deletes{without(k)}, nil); err != nil {
						t.Error(err)
					}
				}
				mu.Lock()
				acknowledged[user] = i%3 != 0
				if won && acknowledged[contested.GetUser()] {
					t.Errorf("%s was written twice", contested.GetUser())
				}
				acknowledged[contested.GetUser()] = acknowledged[contested.GetUser()] || won
				mu.Unlock()
			}
		})
	}
	all.Wait()
	before := state(t, d, "s")
	d.Close()
	d = open(t, path)
	if after := state(t, d, "s"); !slices.Equal(before, after) {
		t.Errorf("it was\n%s\nand is\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	for user, there := range acknowledged {
		s := d.reading("s")
		if held := s.exact[key{"doc:1", "viewer", user}] != nil || s.exact[key{"doc:1", "owner", user}] != nil; held != there {
			t.Errorf("%s is there: %t, acknowledged: %t", user, held, there)
		}
	}
}

// A write that is not durable is not acknowledged and seen by no reader, and nothing is written after
// it: what the file holds shows at the next start.
func TestFailedWrite(t *testing.T) {
	path := newFile(t)
	d := open(t, path)
	first, second := tuple.NewTupleKey("doc:1", "viewer", "user:a"), tuple.NewTupleKey("doc:1", "viewer", "user:b")
	write(t, d, nil, storage.Writes{first})
	before := state(t, d, "s")
	for _, statement := range []string{"CREATE TRIGGER full BEFORE INSERT ON entries WHEN NEW.number = 3 BEGIN SELECT RAISE(ABORT, 'the disk is full'); END", "DROP TRIGGER full"} {
		if _, err := d.journal.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
		err := d.Write(t.Context(), "s", storage.Deletes{without(first)}, storage.Writes{second})
		if err == nil || !strings.Contains(err.Error(), path+": must take writes") || !strings.Contains(err.Error(), "the disk is full") {
			t.Errorf("after %s: %v", statement, err)
		}
		if err := d.DeleteStore(t.Context(), "s"); err == nil {
			t.Error("a store was deleted")
		}
		if _, err := d.CreateStore(t.Context(), &openfgav1.Store{Id: "new"}); err == nil {
			t.Error("a store was made")
		}
		if _, err := d.GetStore(t.Context(), "new"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("a store that was not made: %v", err)
		}
		if after := state(t, d, "s"); !slices.Equal(before, after) {
			t.Errorf("it was %v and is %v", before, after)
		}
	}
	d.Close()
	if after := state(t, open(t, path), "s"); !slices.Equal(before, after) {
		t.Errorf("after a restart it is %v, was %v", after, before)
	}
}

// A write goes on when its caller leaves: otherwise it could be in the file and not in memory.
func TestTheCallerLeaves(t *testing.T) {
	path := newFile(t)
	d := open(t, path)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if err := d.Write(ctx, "s", nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:a")}); err != nil {
		t.Fatal(err)
	}
	write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:b")})
	before := state(t, d, "s")
	d.Close()
	if after := state(t, open(t, path), "s"); !slices.Equal(before, after) {
		t.Errorf("it was %v and is %v", before, after)
	}
}

func TestOneProcessHasTheFile(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	first := open(t, path)
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), path+": must be used by one process") {
		t.Errorf("a second one: %v", err)
	}
	first.Close()
	open(t, path)
}

// A reading of the changelog waits for a write that is under way. One that did not would lack a change
// of an earlier time than its own.
func TestReadersWaitForTheWrite(t *testing.T) {
	under, finish := make(chan struct{}), make(chan struct{})
	sqlite.MustRegisterScalarFunction("wait", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		close(under)
		<-finish
		return int64(0), nil
	})
	d := open(t, newFile(t))
	if _, err := d.journal.db.Exec("CREATE TRIGGER slow BEFORE INSERT ON entries BEGIN SELECT wait(); END"); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		written <- d.Write(context.Background(), "s", nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:a")})
	}()
	<-under
	read := make(chan error, 1)
	go func() {
		_, _, err := d.ReadChanges(context.Background(), "s", storage.ReadChangesFilter{}, storage.ReadChangesOptions{})
		read <- err
	}()
	select {
	case err := <-read:
		t.Errorf("it did not wait: %v", err)
		close(finish)
	case <-time.After(100 * time.Millisecond): // a reader that does not wait needs microseconds
		close(finish)
		if err := <-read; err != nil {
			t.Errorf("it does not have the change: %v", err)
		}
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// A file that is not whole is refused, whatever is wrong with it. Damage where nothing is held
// changes nothing.
func TestDamagedFileIsRefused(t *testing.T) {
	path := newFile(t)
	d := open(t, path)
	for i := range 60 {
		write(t, d, nil, storage.Writes{tuple.NewTupleKey(fmt.Sprint("doc:", i), "viewer", "user:alice")})
	}
	want := state(t, d, "s")
	d.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	if len(whole) < 3*page {
		t.Fatalf("%d bytes show nothing", len(whole))
	}
	refused, harmless := 0, 0
	try := func(name string, content []byte, mustRefuse bool) {
		t.Helper()
		damaged := newFile(t)
		if err := os.WriteFile(damaged, content, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(t.Context(), damaged)
		switch {
		case err == nil:
			if got := state(t, d, "s"); mustRefuse || !slices.Equal(got, want) {
				t.Errorf("%s: it is taken for whole", name)
			}
			d.Close()
			harmless++
		case !strings.Contains(err.Error(), damaged+": must be"):
			t.Errorf("%s: %v", name, err)
		default:
			refused++
		}
	}
	try("nothing", whole, false)
	if harmless != 1 {
		t.Fatal("the whole file is refused")
	}
	for _, length := range []int{0, 1, 100, page, page + 1, len(whole) - page, len(whole) - 1} {
		try(fmt.Sprint("torn at ", length), whole[:length], true)
	}
	for at := 0; at < len(whole); at += page {
		torn := slices.Clone(whole)
		clear(torn[at : at+page])
		try(fmt.Sprint("zeros at ", at), torn, true)
		torn = slices.Clone(whole)
		clear(torn[at+page/2 : at+page])
		try(fmt.Sprint("half a page of zeros at ", at), torn, at > 0) // the first page holds the schema at its end
	}
	if last := len(whole) - page; whole[last] == 0x0d { // the leaf with the newest rows: its count of cells
		fewer := slices.Clone(whole)
		fewer[last+4]--
		try("the newest row is dropped", fewer, true)
	} else {
		t.Error("the last page is no leaf of the table")
	}
	try("another user", bytes.Replace(whole, []byte("user:alice"), []byte("user:malic"), -1), true)
	for at := 3; at < len(whole); at += 251 {
		flipped := slices.Clone(whole)
		flipped[at] ^= 0x10
		try(fmt.Sprint("a bit at ", at), flipped, false)
	}
	if refused < 40 {
		t.Errorf("%d refused, %d harmless", refused, harmless)
	}
	for _, statement := range []string{
		"DELETE FROM entries WHERE number = 7", "DELETE FROM entries WHERE number = 1",
		"UPDATE entries SET body = (SELECT body FROM entries WHERE number = 3) WHERE number = 4",
		"UPDATE entries SET kind = 'delete tuple' WHERE number = 60", "UPDATE entries SET at = at + 1 WHERE number = 60",
		"UPDATE entries SET store = 'other' WHERE number = 60",
		"INSERT INTO entries SELECT 61, kind, store, id, at, body, digest FROM entries WHERE number = 60",
		"PRAGMA user_version = 2", "DROP TABLE entries",
	} {
		edited := newFile(t)
		if err := os.WriteFile(edited, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := openFile(edited)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(edited)
		if err != nil {
			t.Fatal(err)
		}
		try(statement, content, true)
	}
}

// A start that was killed while it made the file leaves nothing that the next one takes for it.
func TestHalfMadeFile(t *testing.T) {
	path := newFile(t)
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:a")})
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
