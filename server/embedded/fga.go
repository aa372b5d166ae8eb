package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/oklog/ulid/v2"
	openfgav1 "github.com/openfga/api/proto/openfga/v1"
	httpmiddleware "github.com/openfga/openfga/pkg/middleware/http"
	openfgaserver "github.com/openfga/openfga/pkg/server"
	openfgaerrors "github.com/openfga/openfga/pkg/server/errors"
	"github.com/openfga/openfga/pkg/storage"
	"github.com/openfga/openfga/pkg/typesystem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"deputy.example/deputy/server/embedded/internal/tuples"
	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/policy"
)

// FGA is a whole OpenFGA server inside the process. It serves OpenFGA's HTTP API in two ways: as an
// [http.RoundTripper] for the policy checker, without a TCP port, and as an [http.Handler] for a
// port. It reads from memory; what it writes is durable in a file if it has one ([OpenFGA]).
//
// OpenFGA's check caches and its weighted-graph resolver are off. So an answer reflects every write
// that was acknowledged before the question, whatever consistency the question demands.
type FGA struct {
	server    *openfgaserver.Server
	datastore storage.OpenFGADatastore
	handler   http.Handler
}

// NewFGA starts an empty server without a file. Close it after the last request.
func NewFGA(ctx context.Context) (*FGA, error) { return serveFGA(ctx, tuples.New()) }

// OpenFGA starts a server whose stores, models and tuples are durable in a file: a write returns
// after that. It creates the file if it is missing. Close it after the last request.
func OpenFGA(ctx context.Context, path string) (*FGA, error) {
	datastore, err := tuples.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	return serveFGA(ctx, datastore)
}

// serveFGA takes over the datastore.
func serveFGA(ctx context.Context, datastore *tuples.Datastore) (*FGA, error) {
	server, err := openfgaserver.NewServerWithOpts(openfgaserver.WithDatastore(datastore))
	if err != nil {
		datastore.Close()
		return nil, fmt.Errorf("embedded OpenFGA: %w", err)
	}
	return newFGA(ctx, server, datastore)
}

// newFGA puts OpenFGA's HTTP API in front of a server. It takes over the server.
func newFGA(ctx context.Context, server *openfgaserver.Server, datastore storage.OpenFGADatastore) (*FGA, error) {
	// The error handler of the stand-alone server, so that errors have the same JSON.
	mux := runtime.NewServeMux(runtime.WithErrorHandler(func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
		code := openfgaerrors.ConvertToEncodedErrorCode(status.Convert(err))
		httpmiddleware.CustomHTTPErrorHandler(ctx, w, r, openfgaerrors.NewEncodedError(code, err.Error()))
	}))
	if err := openfgav1.RegisterOpenFGAServiceHandlerServer(ctx, mux, server); err != nil {
		server.Close()
		return nil, fmt.Errorf("embedded OpenFGA: %w", err)
	}
	return &FGA{server: server, datastore: datastore, handler: mux}, nil
}

// Close stops the server's background work and frees its data.
func (f *FGA) Close() { f.server.Close() }

// ServeHTTP serves OpenFGA's HTTP API.
func (f *FGA) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.handler.ServeHTTP(w, r) }

// RoundTrip serves OpenFGA's HTTP API without a connection and ignores host and scheme. A panic
// inside OpenFGA is an error of this one request, as with OpenFGA in a process of its own.
func (f *FGA) RoundTrip(r *http.Request) (_ *http.Response, err error) {
	if r.Body == nil {
		r = r.Clone(r.Context())
		r.Body = http.NoBody
	}
	defer r.Body.Close()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("embedded OpenFGA: %w", panics.Of(p))
		}
	}()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := responseBuffer{header: make(http.Header), code: http.StatusOK}
	if r, err = f.serveDirectly(&w, r); err != nil {
		return nil, err
	}
	if w.body.Len() == 0 {
		f.handler.ServeHTTP(&w, r)
	}
	w.header.Set("Date", time.Now().UTC().Format(http.TimeFormat)) // as net/http does
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", w.code, http.StatusText(w.code)),
		StatusCode:    w.code,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.header,
		Body:          io.NopCloser(&w.body),
		ContentLength: int64(w.body.Len()),
		Request:       r,
	}, nil
}

// responseBuffer is the http.ResponseWriter behind RoundTrip.
type responseBuffer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *responseBuffer) Header() http.Header         { return w.header }
func (w *responseBuffer) WriteHeader(code int)        { w.code = code }
func (w *responseBuffer) Write(b []byte) (int, error) { return w.body.Write(b) }

// CreateStore makes a store, unless it is there, and returns its id. The id is derived from the
// name, so that a tenant's store keeps its id with and without a file.
func (f *FGA) CreateStore(ctx context.Context, name string) (string, error) {
	id := contentID("store", []byte(name))
	if _, err := f.datastore.CreateStore(ctx, &openfgav1.Store{Id: id, Name: name}); err != nil && !errors.Is(err, storage.ErrCollision) {
		return "", fmt.Errorf("create store %s: %w", name, err)
	}
	return id, nil
}

// WriteModel validates a model in OpenFGA's JSON form, makes it the store's latest and returns its
// id. The id is derived from the bytes. So ledger entries before and after a restart have the same
// id for the same model, and another for a changed model.
func (f *FGA) WriteModel(ctx context.Context, store string, modelJSON []byte) (string, error) {
	var model openfgav1.AuthorizationModel
	if err := protojson.Unmarshal(modelJSON, &model); err != nil {
		return "", fmt.Errorf("write model: %w", err)
	}
	model.Id = contentID("model", modelJSON)
	if _, err := typesystem.NewAndValidate(ctx, &model); err != nil {
		return "", fmt.Errorf("write model: %w", err)
	}
	if latest, err := f.datastore.FindLatestAuthorizationModel(ctx, store); err == nil && latest.GetId() == model.GetId() {
		return model.Id, nil // it was written before a restart
	}
	if err := f.datastore.WriteAuthorizationModel(ctx, store, &model); err != nil {
		return "", fmt.Errorf("write model: %w", err)
	}
	return model.Id, nil
}

// contentID is a ULID in form only: it holds no time.
func contentID(kind string, content []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "deputy-embedded-%s\x00", kind)
	h.Write(content)
	return ulid.ULID(h.Sum(nil)[:16]).String()
}

// tuplesPerWrite is OpenFGA's default limit for one Write.
const tuplesPerWrite = 100

// WriteTuples adds relationships and ignores those that exist already.
func (f *FGA) WriteTuples(ctx context.Context, store string, tuples ...policy.Relation) error {
	for chunk := range slices.Chunk(tuples, tuplesPerWrite) {
		keys := make([]*openfgav1.TupleKey, len(chunk))
		for i, t := range chunk {
			keys[i] = &openfgav1.TupleKey{User: t.User, Relation: t.Relation, Object: t.Object}
		}
		_, err := f.server.Write(ctx, &openfgav1.WriteRequest{
			StoreId: store,
			Writes:  &openfgav1.WriteRequestWrites{TupleKeys: keys, OnDuplicate: "ignore"},
		})
		if err != nil {
			return fmt.Errorf("write tuples: %w", err)
		}
	}
	return nil
}

// History returns every relationship that a store ever had, and whether it has it now.
func (f *FGA) History(ctx context.Context, store string) (map[policy.Relation]bool, error) {
	had := make(map[policy.Relation]bool)
	request := &openfgav1.ReadChangesRequest{StoreId: store, PageSize: wrapperspb.Int32(tuplesPerWrite)}
	for {
		page, err := f.server.ReadChanges(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("read changes: %w", err)
		}
		if len(page.GetChanges()) == 0 {
			return had, nil
		}
		for _, c := range page.GetChanges() {
			k := c.GetTupleKey()
			had[policy.Relation{User: k.GetUser(), Relation: k.GetRelation(), Object: k.GetObject()}] = c.GetOperation() == openfgav1.TupleOperation_TUPLE_OPERATION_WRITE
		}
		request.ContinuationToken = page.GetContinuationToken()
	}
}

// DeleteTuples removes relationships. A missing one is an error.
func (f *FGA) DeleteTuples(ctx context.Context, store string, tuples ...policy.Relation) error {
	for chunk := range slices.Chunk(tuples, tuplesPerWrite) {
		keys := make([]*openfgav1.TupleKeyWithoutCondition, len(chunk))
		for i, t := range chunk {
			keys[i] = &openfgav1.TupleKeyWithoutCondition{User: t.User, Relation: t.Relation, Object: t.Object}
		}
		_, err := f.server.Write(ctx, &openfgav1.WriteRequest{
			StoreId: store,
			Deletes: &openfgav1.WriteRequestDeletes{TupleKeys: keys},
		})
		if err != nil {
			return fmt.Errorf("delete tuples: %w", err)
		}
	}
	return nil
}
