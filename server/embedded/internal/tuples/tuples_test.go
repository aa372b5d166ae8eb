package tuples

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/storage/memory"
	storagetest "github.com/openfga/openfga/pkg/storage/test"
	"github.com/openfga/openfga/pkg/tuple"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpenFGAsOwnSuite(t *testing.T) {
	t.Parallel()
	d := New()
	defer d.Close()
	storagetest.RunAllTests(t, d)
}

// Whatever is written and deleted, every read returns what OpenFGA's own datastore in memory
// returns, which looks at all tuples.
func TestReadsWhatALinearScanFinds(t *testing.T) {
	objects, relations := []string{"doc:1", "doc:2", "folder:1"}, []string{"viewer", "owner"}
	users := []string{"user:a", "user:b", "user:*", "folder:1", "group:1#member", "group:2#member", "group:1#lead"}
	sometimes := func(rt *rapid.T, name string, of ...string) string {
		return rapid.SampledFrom(append(of, "")).Draw(rt, name)
	}
	reads, found := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		mine, theirs := New(), memory.New()
		for range rapid.IntRange(1, 30).Draw(rt, "writes") {
			object, relation, user := rapid.SampledFrom(objects).Draw(rt, "object"), rapid.SampledFrom(relations).Draw(rt, "relation"), rapid.SampledFrom(users).Draw(rt, "user")
			var writes storage.Writes
			var deletes storage.Deletes
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				deletes = append(deletes, tuple.TupleKeyToTupleKeyWithoutCondition(tuple.NewTupleKey(object, relation, user)))
			case 1:
				writes = append(writes, tuple.NewTupleKeyWithCondition(object, relation, user, "hours", nil))
			default:
				writes = append(writes, tuple.NewTupleKey(object, relation, user))
			}
			options := []storage.TupleWriteOption{
				storage.WithOnDuplicateInsert(storage.OnDuplicateInsert(rapid.IntRange(0, 1).Draw(rt, "duplicate"))),
				storage.WithOnMissingDelete(storage.OnMissingDelete(rapid.IntRange(0, 1).Draw(rt, "missing"))),
			}
			got, want := mine.Write(t.Context(), "s", deletes, writes, options...), theirs.Write(t.Context(), "s", deletes, writes, options...)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				rt.Fatalf("writing %v and deleting %v: %v, not %v", writes, deletes, got, want)
			}
		}
		for range 10 {
			var conditions []string
			if c := rapid.SampledFrom([]string{"any", "", "hours"}).Draw(rt, "conditions"); c != "any" {
				conditions = []string{c}
			}
			filter := storage.ReadFilter{Object: sometimes(rt, "object", append(objects, "doc:", "folder:")...), Relation: sometimes(rt, "relation", relations...),
				User: sometimes(rt, "user", append(users, "group:")...), Conditions: conditions}
			if filter.Object+filter.Relation+filter.User == "" {
				filter.Conditions = nil // theirs does not look at them then
			}
			usersets := storage.ReadUsersetTuplesFilter{Object: rapid.SampledFrom(objects).Draw(rt, "object"), Relation: rapid.SampledFrom(relations).Draw(rt, "relation"),
				AllowedUserTypeRestrictions: rapid.SampledFrom([][]*openfgav1.RelationReference{nil,
					{{Type: "group", RelationOrWildcard: &openfgav1.RelationReference_Relation{Relation: "member"}}},
					{{Type: "user", RelationOrWildcard: &openfgav1.RelationReference_Wildcard{}}, {Type: "group", RelationOrWildcard: &openfgav1.RelationReference_Relation{Relation: "lead"}}}}).Draw(rt, "allowed")}
			starting := storage.ReadStartingWithUserFilter{ObjectType: rapid.SampledFrom([]string{"doc", "folder"}).Draw(rt, "type"), Relation: usersets.Relation, Conditions: conditions,
				UserFilter: []*openfgav1.ObjectRelation{{Object: "user:a"}, {Object: "user:*"}, {Object: "group:1", Relation: "member"}}}
			if rapid.Bool().Draw(rt, "some objects") {
				starting.ObjectIDs = storage.NewSortedSet("1")
			}
			size := rapid.IntRange(1, 4).Draw(rt, "page")
			for what, read := range map[string]func(storage.OpenFGADatastore) []string{
				"read": func(d storage.OpenFGADatastore) []string {
					return all(rt)(d.Read(t.Context(), "s", filter, storage.ReadOptions{}))
				},
				"pages": func(d storage.OpenFGADatastore) []string { return pages(rt, d, filter, size) },
				"exact": func(d storage.OpenFGADatastore) []string {
					return exact(rt, d, usersets.Object, usersets.Relation, cond(filter.User, users), conditions)
				},
				"usersets": func(d storage.OpenFGADatastore) []string {
					return all(rt)(d.ReadUsersetTuples(t.Context(), "s", usersets, storage.ReadUsersetTuplesOptions{}))
				},
				"starting": func(d storage.OpenFGADatastore) []string {
					return all(rt)(d.ReadStartingWithUser(t.Context(), "s", starting, storage.ReadStartingWithUserOptions{}))
				},
				"changes":    func(d storage.OpenFGADatastore) []string { return changelog(rt, d, "", false, size) },
				"of folders": func(d storage.OpenFGADatastore) []string { return changelog(rt, d, "folder", false, size) },
				"backwards":  func(d storage.OpenFGADatastore) []string { return changelog(rt, d, "doc", true, size) },
			} {
				got, want := read(mine), read(theirs)
				if what != "changes" && what != "of folders" && what != "backwards" {
					slices.Sort(got) // no order is promised
					slices.Sort(want)
				}
				if !slices.Equal(got, want) {
					rt.Fatalf("%s of %+v, %+v, %+v:\n%q, not\n%q", what, filter, &usersets, &starting, got, want)
				}
				reads++
				found += min(len(want), 1)
			}
		}
	})
	if found < reads/4 {
		t.Errorf("only %d of %d reads found anything", found, reads)
	}
}

// cond is a whole user, whatever the filter has.
func cond(user string, users []string) string {
	if slices.Contains(users, user) {
		return user
	}
	return users[0]
}

func line(t *openfgav1.Tuple) string { return tuple.TupleKeyWithConditionToString(t.GetKey()) }

func all(rt *rapid.T) func(storage.TupleIterator, error) []string {
	return func(it storage.TupleIterator, err error) (lines []string) {
		for err == nil {
			var first, next *openfgav1.Tuple
			first, _ = it.Head(context.Background())
			if next, err = it.Next(context.Background()); err == nil {
				if line(first) != line(next) {
					rt.Fatalf("the head was %v, the next is %v", first, next)
				}
				lines = append(lines, line(next))
			}
		}
		if !errors.Is(err, storage.ErrIteratorDone) {
			rt.Fatal(err)
		}
		it.Stop()
		if _, err := it.Next(context.Background()); !errors.Is(err, storage.ErrIteratorDone) {
			rt.Fatalf("after the end: %v", err)
		}
		return lines
	}
}

func pages(rt *rapid.T, d storage.OpenFGADatastore, f storage.ReadFilter, size int) (lines []string) {
	for from := ""; ; {
		page, next, err := d.ReadPage(context.Background(), "s", f, storage.ReadPageOptions{Pagination: storage.PaginationOptions{PageSize: size, From: from}})
		if err != nil || len(page) > size {
			rt.Fatalf("%d in a page of %d: %v", len(page), size, err)
		}
		for _, t := range page {
			lines = append(lines, line(t))
		}
		if from = next; from == "" {
			return lines
		}
	}
}

func exact(rt *rapid.T, d storage.OpenFGADatastore, object, relation, user string, conditions []string) []string {
	t, err := d.ReadUserTuple(context.Background(), "s", storage.ReadUserTupleFilter{Object: object, Relation: relation, User: user, Conditions: conditions}, storage.ReadUserTupleOptions{})
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil
	case err != nil:
		rt.Fatal(err)
	}
	return []string{line(t)}
}

func changelog(rt *rapid.T, d storage.OpenFGADatastore, objectType string, desc bool, size int) (lines []string) {
	for from := ""; ; {
		page, next, err := d.ReadChanges(context.Background(), "s", storage.ReadChangesFilter{ObjectType: objectType}, storage.ReadChangesOptions{Pagination: storage.PaginationOptions{PageSize: size, From: from}, SortDesc: desc})
		switch {
		case errors.Is(err, storage.ErrNotFound):
			return lines
		case err != nil || len(page) > size:
			rt.Fatalf("%d in a page of %d: %v", len(page), size, err)
		}
		for _, c := range page {
			lines = append(lines, c.GetOperation().String()+" "+tuple.TupleKeyWithConditionToString(c.GetTupleKey()))
		}
		from = next
	}
}

// A read sees the store as it was at one moment, between two writes, however slowly it reads. A
// reader that must see everything shows that the writes do happen in between.
func TestAReadSeesOneMoment(t *testing.T) {
	for _, everything := range []bool{false, true} {
		d := New()
		key := func(i int) *openfgav1.TupleKey {
			return tuple.NewTupleKey("doc:1", "viewer", fmt.Sprintf("user:%d", i))
		}
		for i := range 50 {
			write(t, d, nil, storage.Writes{key(i)})
		}
		read, err := d.Read(t.Context(), "s", storage.ReadFilter{Object: "doc:1", Relation: "viewer"}, storage.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if everything {
			read.(*iterator).version = math.MaxUint64
		}
		seen := 0
		for i := 0; ; i++ {
			if i < 50 { // each is replaced by another: there are fifty at every moment
				write(t, d, storage.Deletes{tuple.TupleKeyToTupleKeyWithoutCondition(key(49 - i))}, storage.Writes{key(100 + i)})
			}
			if _, err := read.Next(t.Context()); errors.Is(err, storage.ErrIteratorDone) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			seen++
		}
		if whole := seen == 50; whole == everything {
			t.Errorf("%d of 50 were seen, everything: %t", seen, everything)
		}
	}
}

func write(t testing.TB, d *Datastore, deletes storage.Deletes, writes storage.Writes) {
	t.Helper()
	if err := d.Write(t.Context(), "s", deletes, writes); err != nil {
		t.Fatal(err)
	}
}

// What comes and goes leaves nothing in the lists but the changelog.
func TestWhatIsDeletedIsGone(t *testing.T) {
	d := New()
	for i := range 1000 {
		k := tuple.NewTupleKey("doc:"+fmt.Sprint(i%7), "viewer", "user:"+fmt.Sprint(i%3))
		write(t, d, nil, storage.Writes{k})
		write(t, d, storage.Deletes{tuple.TupleKeyToTupleKeyWithoutCondition(k)}, nil)
	}
	s := d.reading("s")
	if len(s.exact)+len(s.objects)+len(s.users)+len(s.all.records) != 0 || len(s.changes) != 2000 {
		t.Errorf("%d tuples, %d objects, %d users, %d in the list and %d changes", len(s.exact), len(s.objects), len(s.users), len(s.all.records), len(s.changes))
	}
}

// A horizon omits the newest changes. Without one no reading misses a change, whatever the clock.
func TestHorizon(t *testing.T) {
	d := New()
	write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:a")})
	s := d.reading("s")
	s.changes[0].at = time.Now().Add(time.Minute)
	write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:2", "viewer", "user:a")})
	read := func(horizon time.Duration) int {
		changes, _, err := d.ReadChanges(t.Context(), "s", storage.ReadChangesFilter{HorizonOffset: horizon}, storage.ReadChangesOptions{})
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		return len(changes)
	}
	if all, old := read(0), read(time.Hour); all != 2 || old != 0 {
		t.Errorf("%d changes, %d of them an hour old", all, old)
	}
	if first, second := s.changes[0], s.changes[1]; second.at.Before(first.at) || second.id.Compare(first.id) <= 0 {
		t.Errorf("after the clock was set back, the changelog has %v, then %v", first.at, second.at)
	}
}

func TestContinuationTokenOfAnother(t *testing.T) {
	d := New()
	write(t, d, nil, storage.Writes{tuple.NewTupleKey("doc:1", "viewer", "user:a")})
	_, _, err := d.ReadPage(t.Context(), "s", storage.ReadFilter{}, storage.ReadPageOptions{Pagination: storage.PaginationOptions{PageSize: 1, From: "1"}})
	_, _, errChanges := d.ReadChanges(t.Context(), "s", storage.ReadChangesFilter{}, storage.ReadChangesOptions{Pagination: storage.PaginationOptions{From: "1"}})
	if !errors.Is(err, storage.ErrInvalidContinuationToken) || !errors.Is(errChanges, storage.ErrInvalidContinuationToken) {
		t.Errorf("errors are %v and %v", err, errChanges)
	}
}
