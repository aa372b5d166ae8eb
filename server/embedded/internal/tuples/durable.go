package tuples

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	"github.com/openfga/openfga/pkg/storage"
	"google.golang.org/protobuf/proto"
)

// Kinds of entries.
const (
	storeCreated = "create store"
	storeDeleted = "delete store"
	modelWritten = "write model"
	assertions   = "write assertions"
	tupleWritten = "write tuple"
	tupleDeleted = "delete tuple"
)

// Open returns a datastore whose changes are durable in a file: a call that changes something
// returns after that. The file is created if it is missing. It is refused if it is damaged, or in
// use by another process.
func Open(ctx context.Context, path string) (*Datastore, error) {
	d := New()
	j, err := openJournal(ctx, path, func(e entry) error { return d.replay(ctx, e) })
	if err != nil {
		d.Close()
		return nil, err
	}
	d.journal = j
	return d, nil
}

// record makes entries durable. The caller holds d.changing.
func (d *Datastore) record(entries ...entry) error {
	if d.journal == nil || len(entries) == 0 { // of New
		return nil
	}
	return d.journal.append(entries...)
}

// replay does again what an entry is about.
func (d *Datastore) replay(ctx context.Context, e entry) error {
	switch e.kind {
	case storeCreated:
		var was openfgav1.Store
		if err := proto.Unmarshal(e.body, &was); err != nil {
			return err
		}
		made, err := d.OpenFGADatastore.CreateStore(ctx, &was)
		if err == nil {
			made.CreatedAt, made.UpdatedAt = was.GetCreatedAt(), was.GetUpdatedAt()
		}
		return err
	case storeDeleted:
		return d.dropStore(ctx, e.store)
	case modelWritten:
		var model openfgav1.AuthorizationModel
		if err := proto.Unmarshal(e.body, &model); err != nil {
			return err
		}
		return d.OpenFGADatastore.WriteAuthorizationModel(ctx, e.store, &model)
	case assertions:
		var written openfgav1.WriteAssertionsRequest
		if err := proto.Unmarshal(e.body, &written); err != nil {
			return err
		}
		return d.OpenFGADatastore.WriteAssertions(ctx, e.store, e.id, written.GetAssertions())
	case tupleWritten, tupleDeleted:
		return d.writing(e.store).replay(e)
	}
	return fmt.Errorf("it is of the unknown kind %q", e.kind)
}

var errNoSuchChange = errors.New("the change does not fit those before it")

// replay adds a row of the changelog as it was, and does what it is about.
func (s *store) replay(e entry) error {
	var t openfgav1.TupleKey
	if err := proto.Unmarshal(e.body, &t); err != nil {
		return err
	}
	id, err := ulid.ParseStrict(e.id)
	if err != nil {
		return err
	}
	at, k := time.Unix(0, e.at).UTC(), key{t.GetObject(), t.GetRelation(), t.GetUser()}
	if n := len(s.changes); n > 0 && (s.changes[n-1].id.Compare(id) >= 0 || s.changes[n-1].at.After(at)) {
		return errNoSuchChange
	}
	r, deleted := s.exact[k], e.kind == tupleDeleted
	if (r != nil) != deleted {
		return errNoSuchChange
	}
	s.version++
	if deleted {
		s.remove(r)
	} else {
		r = newRecord(e.store, at, &t)
		r.id = id
		s.add(k, r)
	}
	s.changes = append(s.changes, change{id, at, r, deleted})
	// The ids of the next changes are made with other random bits, and must be later all the same.
	s.earliest = at.Truncate(time.Millisecond).Add(time.Millisecond)
	return nil
}

// entry is what makes a change durable.
func (c change) entry(store string) (entry, error) {
	kind := tupleWritten
	if c.deleted {
		kind = tupleDeleted
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.record.AsTuple().GetKey())
	return entry{kind: kind, store: store, id: c.id.String(), at: c.at.UnixNano(), body: body}, err
}

// recordChanges makes the changes of one write durable, all of them or none.
func (d *Datastore) recordChanges(store string, changes []change) error {
	if d.journal == nil {
		return nil
	}
	entries := make([]entry, len(changes))
	for i, c := range changes {
		var err error
		if entries[i], err = c.entry(store); err != nil {
			return err
		}
	}
	return d.record(entries...)
}

// recordMessage is record for one entry whose body is a message.
func (d *Datastore) recordMessage(e entry, message proto.Message) (err error) {
	if e.body, err = proto.Marshal(message); err != nil {
		return err
	}
	return d.record(e)
}

// CreateStore implements [storage.StoresBackend].
func (d *Datastore) CreateStore(ctx context.Context, s *openfgav1.Store) (*openfgav1.Store, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	made, err := d.OpenFGADatastore.CreateStore(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := d.recordMessage(entry{kind: storeCreated, store: s.GetId()}, made); err != nil {
		return nil, errors.Join(err, d.OpenFGADatastore.DeleteStore(ctx, s.GetId()))
	}
	return made, nil
}

// DeleteStore implements [storage.StoresBackend]. OpenFGA never reuses an id, but a store must not
// start with the tuples of an earlier one with the same id.
func (d *Datastore) DeleteStore(ctx context.Context, id string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.record(entry{kind: storeDeleted, store: id}); err != nil {
		return err
	}
	return d.dropStore(ctx, id)
}

func (d *Datastore) dropStore(ctx context.Context, id string) error {
	d.mu.Lock()
	delete(d.stores, id)
	d.mu.Unlock()
	return d.OpenFGADatastore.DeleteStore(ctx, id)
}

// WriteAuthorizationModel implements [storage.TypeDefinitionWriteBackend].
func (d *Datastore) WriteAuthorizationModel(ctx context.Context, store string, model *openfgav1.AuthorizationModel) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.recordMessage(entry{kind: modelWritten, store: store}, model); err != nil {
		return err
	}
	return d.OpenFGADatastore.WriteAuthorizationModel(ctx, store, model)
}

// WriteAssertions implements [storage.AssertionsBackend].
func (d *Datastore) WriteAssertions(ctx context.Context, store, modelID string, list []*openfgav1.Assertion) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.recordMessage(entry{kind: assertions, store: store, id: modelID}, &openfgav1.WriteAssertionsRequest{Assertions: list}); err != nil {
		return err
	}
	return d.OpenFGADatastore.WriteAssertions(ctx, store, modelID, list)
}

var _ storage.OpenFGADatastore = (*Datastore)(nil)
