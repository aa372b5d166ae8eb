package tuples

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/tuple"
)

// record is a tuple and its life: it exists in all versions of the store since from, and before
// until. So a reader sees one version without a copy and without blocking a writer.
type record struct {
	storage.TupleRecord
	id    ulid.ULID
	set   bool // the user is a userset or a wildcard
	from  uint64
	until atomic.Uint64 // 0: it still exists
}

// newRecord has no id yet, and is of no version.
func newRecord(store string, at time.Time, t *openfgav1.TupleKey) *record {
	objectType, objectID := tuple.SplitObject(t.GetObject())
	return &record{
		TupleRecord: storage.TupleRecord{
			Store: store, ObjectType: objectType, ObjectID: objectID, Relation: t.GetRelation(), User: t.GetUser(),
			ConditionName: t.GetCondition().GetName(), ConditionContext: t.GetCondition().GetContext(),
			InsertedAt: at,
		},
		set: tuple.GetUserTypeFromUser(t.GetUser()) == tuple.UserSet,
	}
}

func (r *record) key() key { return key{r.object(), r.Relation, r.User} }

func (r *record) object() string { return tuple.BuildObject(r.ObjectType, r.ObjectID) }

// conditioned returns whether the tuple's condition ("" for none) is one of those; any is, if none
// are named.
func (r *record) conditioned(any []string) bool {
	return len(any) == 0 || slices.Contains(any, r.ConditionName)
}

// allowed returns whether the tuple's userset is of a kind that the model allows there; any is, if
// none are named.
func (r *record) allowed(any []*openfgav1.RelationReference) bool {
	if len(any) == 0 {
		return true
	}
	object, relation := tuple.SplitObjectRelation(r.User)
	for _, a := range any {
		if a.GetType() != tuple.GetType(object) {
			continue
		}
		switch of := a.GetRelationOrWildcard().(type) {
		case *openfgav1.RelationReference_Relation:
			if relation == of.Relation {
				return true
			}
		case *openfgav1.RelationReference_Wildcard:
			if relation == "" && tuple.IsWildcard(object) {
				return true
			}
		}
	}
	return false
}

// list holds records in the order of writing. A removed one stays in it until they are half of it.
// So a removal costs nothing, and a read at most twice its result.
type list struct {
	records []*record // only appended to or replaced: readers hold parts of it
	gone    int
}

func (l *list) add(r *record) { l.records = append(l.records, r) }

// remove counts one more record whose end is set.
func (l *list) remove() {
	if l.gone++; 2*l.gone <= len(l.records) {
		return
	}
	left := make([]*record, 0, len(l.records)-l.gone)
	for _, r := range l.records {
		if r.until.Load() == 0 {
			left = append(left, r)
		}
	}
	l.records, l.gone = left, 0
}

func (l *list) empty() bool { return len(l.records) == l.gone }

// iterator goes through the records of some lists at one version of the store, in the order of
// writing.
type iterator struct {
	version uint64
	fits    func(*record) bool // nil: all do

	mu    sync.Mutex
	lists [][]*record
}

// found returns an iterator without lists. The caller holds the lock.
func (s *store) found(fits func(*record) bool) *iterator {
	return &iterator{version: s.version, fits: fits}
}

func (it *iterator) sees(r *record) bool {
	until := r.until.Load()
	return r.from <= it.version && (until == 0 || until > it.version) && (it.fits == nil || it.fits(r))
}

// head returns the index of the list with the next record, or -1. It drops records that are not in
// this version.
func (it *iterator) head() int {
	first := -1
	for i, records := range it.lists {
		for len(records) > 0 && !it.sees(records[0]) {
			records = records[1:]
		}
		it.lists[i] = records
		if len(records) > 0 && (first < 0 || records[0].id.Compare(it.lists[first][0].id) < 0) {
			first = i
		}
	}
	return first
}

// lowest takes the next record, or nil.
func (it *iterator) lowest() *record {
	i := it.head()
	if i < 0 {
		return nil
	}
	r := it.lists[i][0]
	it.lists[i] = it.lists[i][1:]
	return r
}

// Next implements [storage.Iterator].
func (it *iterator) Next(ctx context.Context) (*openfgav1.Tuple, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	it.mu.Lock()
	r := it.lowest()
	it.mu.Unlock()
	if r == nil {
		return nil, storage.ErrIteratorDone
	}
	return r.AsTuple(), nil
}

// Head implements [storage.Iterator].
func (it *iterator) Head(ctx context.Context) (*openfgav1.Tuple, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	it.mu.Lock()
	defer it.mu.Unlock()
	i := it.head()
	if i < 0 {
		return nil, storage.ErrIteratorDone
	}
	return it.lists[i][0].AsTuple(), nil
}

// Stop implements [storage.Iterator].
func (it *iterator) Stop() {
	it.mu.Lock()
	it.lists = nil
	it.mu.Unlock()
}

// IsOrdered implements [storage.Iterator]: not in an order that OpenFGA could use.
func (it *iterator) IsOrdered() bool { return false }
