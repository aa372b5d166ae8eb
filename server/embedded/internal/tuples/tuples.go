// Package tuples is a datastore for OpenFGA in the same process. It reads from memory, and its
// changes are durable in a file where it has one (Open). The cost of a read depends on its result
// and not on the number of tuples, while OpenFGA's own datastore in memory scans all tuples of the
// store for each read.
//
// Stores, models and assertions are few and rarely read: OpenFGA's own datastore holds them.
package tuples

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/storage/memory"
	"github.com/openfga/openfga/pkg/tuple"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Datastore is a [storage.OpenFGADatastore] in memory. It is safe for concurrent use.
type Datastore struct {
	storage.OpenFGADatastore // stores, models, assertions

	journal  *journal   // nil: nothing is durable
	changing sync.Mutex // held by each change, so that the journal has them in their order

	mu     sync.RWMutex
	stores map[string]*store
}

// New returns an empty datastore in memory alone.
func New() *Datastore {
	return &Datastore{OpenFGADatastore: memory.New(), stores: make(map[string]*store)}
}

// store holds the tuples of one store, and its changelog. Every tuple is in the list of all, in one
// list of its object and in one of its user; lists are in the order of writing.
type store struct {
	mu      sync.RWMutex
	version uint64 // of the last write
	exact   map[key]*record
	all     list
	objects map[string]map[string]*onObject    // by object, then relation
	users   map[string]map[typedRelation]*list // by user, then what it is related to
	changes []change                           // in the order of their ids
	entropy *ulid.MonotonicEntropy             // of the ids of changes

	earliest time.Time // of the next change: after all that were replayed
}

type key struct{ object, relation, user string }

type typedRelation struct{ objectType, relation string }

// onObject holds the users with one relation on one object. Usersets and wildcards are read by
// themselves, and would be hard to find among the users.
type onObject struct{ users, sets list }

// change is a row of the changelog.
type change struct {
	id      ulid.ULID
	at      time.Time
	record  *record
	deleted bool
}

// writing returns a store, which need not have been created: OpenFGA checks that where it matters.
func (d *Datastore) writing(id string) *store {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stores[id]
	if s == nil {
		s = &store{
			exact: make(map[key]*record), objects: make(map[string]map[string]*onObject), users: make(map[string]map[typedRelation]*list),
			entropy: ulid.Monotonic(rand.Reader, 0),
		}
		d.stores[id] = s
	}
	return s
}

// reading returns a store, or an empty one that no other caller has.
func (d *Datastore) reading(id string) *store {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.stores[id]; s != nil {
		return s
	}
	return new(store)
}

// Write implements [storage.RelationshipTupleWriter]. It is atomic, and durable when it returns if
// the datastore has a file.
//
// Readers wait for a write that is under way. Otherwise one could read the changelog without a
// change whose time is past, and never ask for that time again.
func (d *Datastore) Write(_ context.Context, id string, deletes storage.Deletes, writes storage.Writes, options ...storage.TupleWriteOption) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	s := d.writing(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fits(deletes, writes, storage.NewTupleWriteOptions(options...)); err != nil {
		return err
	}
	changes, err := s.plan(id, deletes, writes)
	if err != nil {
		return err
	}
	if err := d.recordChanges(id, changes); err != nil {
		return err
	}
	s.version++
	for _, c := range changes {
		if c.deleted {
			s.remove(c.record)
		} else {
			s.add(c.record.key(), c.record)
		}
	}
	s.changes = append(s.changes, changes...)
	return nil
}

// plan makes the changes of a write, without those that change nothing. Their times and ids are not
// before those of earlier changes, also if the clock is set back.
func (s *store) plan(store string, deletes storage.Deletes, writes storage.Writes) ([]change, error) {
	at := latest(time.Now().UTC(), s.earliest)
	if len(s.changes) > 0 {
		at = latest(at, s.changes[len(s.changes)-1].at)
	}
	changes := make([]change, 0, len(deletes)+len(writes))
	planned := make(map[key]*record, cap(changes)) // nil: deleted
	held := func(k key) *record {
		if r, there := planned[k]; there {
			return r
		}
		return s.exact[k]
	}
	for _, t := range deletes {
		k := key{t.GetObject(), t.GetRelation(), t.GetUser()}
		if r := held(k); r != nil {
			planned[k] = nil
			changes = append(changes, change{at: at, record: r, deleted: true})
		}
	}
	for _, t := range writes {
		k := key{t.GetObject(), t.GetRelation(), t.GetUser()}
		if held(k) == nil {
			planned[k] = newRecord(store, at, t)
			changes = append(changes, change{at: at, record: planned[k]})
		}
	}
	for i := range changes {
		c := &changes[i]
		var err error
		if c.id, err = ulid.New(ulid.Timestamp(at), s.entropy); err != nil {
			return nil, err
		}
		if !c.deleted {
			c.record.id = c.id
		}
	}
	return changes, nil
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// fits returns an error unless the tuples to delete exist and those to write do not.
func (s *store) fits(deletes storage.Deletes, writes storage.Writes, options storage.TupleWriteOptions) error {
	for _, t := range deletes {
		there := s.exact[key{t.GetObject(), t.GetRelation(), t.GetUser()}] != nil
		if !there && options.OnMissingDelete != storage.OnMissingDeleteIgnore {
			return storage.InvalidWriteInputError(t, openfgav1.TupleOperation_TUPLE_OPERATION_DELETE)
		}
	}
	for _, t := range writes {
		r := s.exact[key{t.GetObject(), t.GetRelation(), t.GetUser()}]
		switch {
		case r == nil:
		case options.OnDuplicateInsert != storage.OnDuplicateInsertIgnore:
			return storage.InvalidWriteInputError(t, openfgav1.TupleOperation_TUPLE_OPERATION_WRITE)
		case r.ConditionName != t.GetCondition().GetName() || !sameContext(r.ConditionContext, t.GetCondition().GetContext()):
			return storage.TupleConditionConflictError(t)
		}
	}
	return nil
}

// sameContext treats none and an empty one as equal.
func sameContext(a, b *structpb.Struct) bool {
	return len(a.GetFields()) == 0 && len(b.GetFields()) == 0 || proto.Equal(a, b)
}

func (s *store) add(k key, r *record) {
	r.from = s.version
	s.exact[k] = r
	s.all.add(r)
	relations := s.objects[k.object]
	if relations == nil {
		relations = make(map[string]*onObject, 1)
		s.objects[k.object] = relations
	}
	on := relations[k.relation]
	if on == nil {
		on = new(onObject)
		relations[k.relation] = on
	}
	on.of(r).add(r)
	related := s.users[k.user]
	if related == nil {
		related = make(map[typedRelation]*list, 1)
		s.users[k.user] = related
	}
	to := typedRelation{r.ObjectType, r.Relation}
	if related[to] == nil {
		related[to] = new(list)
	}
	related[to].add(r)
}

func (on *onObject) of(r *record) *list {
	if r.set {
		return &on.sets
	}
	return &on.users
}

// remove takes the record out of all lists, and removes the empty ones.
func (s *store) remove(r *record) {
	k := r.key()
	r.until.Store(s.version)
	delete(s.exact, k)
	s.all.remove()
	on := s.objects[k.object][k.relation]
	on.of(r).remove()
	if on.users.empty() && on.sets.empty() {
		delete(s.objects[k.object], k.relation)
	}
	if len(s.objects[k.object]) == 0 {
		delete(s.objects, k.object)
	}
	to := typedRelation{r.ObjectType, r.Relation}
	s.users[k.user][to].remove()
	if s.users[k.user][to].empty() {
		delete(s.users[k.user], to)
	}
	if len(s.users[k.user]) == 0 {
		delete(s.users, k.user)
	}
}

// ReadUserTuple implements [storage.RelationshipTupleReader].
func (d *Datastore) ReadUserTuple(_ context.Context, id string, f storage.ReadUserTupleFilter, _ storage.ReadUserTupleOptions) (*openfgav1.Tuple, error) {
	s := d.reading(id)
	s.mu.RLock()
	r := s.exact[key{f.Object, f.Relation, f.User}]
	s.mu.RUnlock()
	if r == nil || !r.conditioned(f.Conditions) {
		return nil, storage.ErrNotFound
	}
	return r.AsTuple(), nil
}

// ReadUsersetTuples implements [storage.RelationshipTupleReader].
func (d *Datastore) ReadUsersetTuples(_ context.Context, id string, f storage.ReadUsersetTuplesFilter, _ storage.ReadUsersetTuplesOptions) (storage.TupleIterator, error) {
	s := d.reading(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := s.found(func(r *record) bool { return r.allowed(f.AllowedUserTypeRestrictions) && r.conditioned(f.Conditions) })
	if on := s.objects[f.Object][f.Relation]; on != nil {
		found.lists = [][]*record{on.sets.records}
	}
	return found, nil
}

// ReadStartingWithUser implements [storage.RelationshipTupleReader]. The tuples come in the order
// of their objects.
func (d *Datastore) ReadStartingWithUser(_ context.Context, id string, f storage.ReadStartingWithUserFilter, _ storage.ReadStartingWithUserOptions) (storage.TupleIterator, error) {
	s := d.reading(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := s.found(nil)
	var records []*record
	for _, user := range f.UserFilter {
		name := user.GetObject()
		if user.GetRelation() != "" {
			name = tuple.ToObjectRelationString(user.GetObject(), user.GetRelation())
		}
		related := s.users[name][typedRelation{f.ObjectType, f.Relation}]
		if related == nil {
			continue
		}
		for _, r := range related.records {
			if found.sees(r) && r.conditioned(f.Conditions) && (f.ObjectIDs == nil || f.ObjectIDs.Exists(r.ObjectID)) {
				records = append(records, r)
			}
		}
	}
	slices.SortStableFunc(records, func(a, b *record) int { return cmp.Compare(a.ObjectID, b.ObjectID) })
	found.lists = [][]*record{records}
	return found, nil
}

// Read implements [storage.RelationshipTupleReader].
func (d *Datastore) Read(_ context.Context, id string, f storage.ReadFilter, _ storage.ReadOptions) (storage.TupleIterator, error) {
	s := d.reading(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.read(f), nil
}

// ReadPage implements [storage.RelationshipTupleReader]. The token is the id of the last tuple of
// the previous page, so that concurrent deletes cause no gap.
func (d *Datastore) ReadPage(ctx context.Context, id string, f storage.ReadFilter, options storage.ReadPageOptions) ([]*openfgav1.Tuple, string, error) {
	var after ulid.ULID
	if from := options.Pagination.From; from != "" {
		var err error
		if after, err = ulid.ParseStrict(from); err != nil {
			return nil, "", storage.ErrInvalidContinuationToken
		}
	}
	s := d.reading(id)
	s.mu.RLock()
	found := s.read(f)
	s.mu.RUnlock()
	for i, records := range found.lists {
		beyond, there := slices.BinarySearchFunc(records, after, func(r *record, id ulid.ULID) int { return r.id.Compare(id) })
		if there {
			beyond++
		}
		found.lists[i] = records[beyond:]
	}
	var page []*openfgav1.Tuple
	var last *record
	for {
		r := found.lowest()
		switch {
		case r == nil:
			return page, "", nil
		case options.Pagination.PageSize > 0 && len(page) == options.Pagination.PageSize:
			return page, last.id.String(), nil
		}
		page, last = append(page, r.AsTuple()), r
	}
}

// read finds what fits a filter, each part of which may be empty. An object or a user may be given
// by type only. The caller holds the lock.
func (s *store) read(f storage.ReadFilter) *iterator {
	objectType, objectID := tuple.SplitObject(f.Object)
	userType, userID, _ := tuple.ToUserParts(f.User)
	found := s.found(func(r *record) bool {
		return (f.Object == "" || r.ObjectType == objectType && (objectID == "" || r.ObjectID == objectID)) &&
			(f.Relation == "" || r.Relation == f.Relation) &&
			(f.User == "" || r.User == f.User || userID == "" && strings.HasPrefix(r.User, userType+":")) &&
			r.conditioned(f.Conditions)
	})
	switch {
	case objectID != "" && f.Relation != "" && f.User != "" && userID != "":
		if r := s.exact[key{f.Object, f.Relation, f.User}]; r != nil {
			found.lists = [][]*record{{r}}
		}
	case objectID != "":
		for relation, on := range s.objects[f.Object] {
			if f.Relation == "" || relation == f.Relation {
				found.lists = append(found.lists, on.users.records, on.sets.records)
			}
		}
	case f.User != "" && userID != "":
		for to, related := range s.users[f.User] {
			if (f.Relation == "" || to.relation == f.Relation) && (objectType == "" || to.objectType == objectType) {
				found.lists = append(found.lists, related.records)
			}
		}
	default:
		found.lists = [][]*record{s.all.records}
	}
	return found
}

// ReadChanges implements [storage.ChangelogBackend].
func (d *Datastore) ReadChanges(_ context.Context, id string, f storage.ReadChangesFilter, options storage.ReadChangesOptions) ([]*openfgav1.TupleChange, string, error) {
	s := d.reading(id)
	s.mu.RLock()
	changes := s.changes // append-only
	s.mu.RUnlock()
	if f.HorizonOffset > 0 {
		horizon := time.Now().UTC().Add(-f.HorizonOffset)
		changes = changes[:until(changes, func(c change) bool { return c.at.After(horizon) })]
	}
	if from := options.Pagination.From; from != "" {
		last, err := ulid.Parse(from)
		if err != nil {
			return nil, "", storage.ErrInvalidContinuationToken
		}
		if options.SortDesc {
			changes = changes[:until(changes, func(c change) bool { return c.id.Compare(last) >= 0 })]
		} else {
			changes = changes[until(changes, func(c change) bool { return c.id.Compare(last) > 0 }):]
		}
	}
	inOrder := slices.All(changes)
	if options.SortDesc {
		inOrder = slices.Backward(changes)
	}
	size := cmp.Or(max(options.Pagination.PageSize, 0), storage.DefaultPageSize)
	var page []*openfgav1.TupleChange
	var last change
	for _, c := range inOrder {
		if len(page) == size {
			break
		}
		if f.ObjectType == "" || c.record.ObjectType == f.ObjectType {
			page, last = append(page, c.asTupleChange()), c
		}
	}
	if len(page) == 0 {
		return nil, "", storage.ErrNotFound
	}
	return page, last.id.String(), nil
}

// until is the number of changes before the first that is too late.
func until(changes []change, late func(change) bool) int {
	n, _ := slices.BinarySearchFunc(changes, true, func(c change, _ bool) int {
		if late(c) {
			return 1
		}
		return -1
	})
	return n
}

// asTupleChange omits the condition of a deleted tuple, as OpenFGA's datastores do.
func (c change) asTupleChange() *openfgav1.TupleChange {
	operation, t := openfgav1.TupleOperation_TUPLE_OPERATION_WRITE, c.record.AsTuple().GetKey()
	if c.deleted {
		operation, t.Condition = openfgav1.TupleOperation_TUPLE_OPERATION_DELETE, nil
	}
	return &openfgav1.TupleChange{TupleKey: t, Operation: operation, Timestamp: timestamppb.New(c.at)}
}

// Close implements [storage.OpenFGADatastore].
func (d *Datastore) Close() {
	d.mu.Lock()
	clear(d.stores)
	d.mu.Unlock()
	d.OpenFGADatastore.Close()
	if d.journal != nil {
		d.journal.close()
	}
}

// MaxTuplesPerWrite implements [storage.RelationshipTupleWriter].
func (d *Datastore) MaxTuplesPerWrite() int { return storage.DefaultMaxTuplesPerWrite }
