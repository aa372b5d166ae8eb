package e2e

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/embedded"
	"deputy.example/deputy/server/internal/policy"
)

// relationships is an OpenFGA server behind a TCP port, which can be made to fail.
type relationships struct {
	fga          *embedded.FGA
	url          string
	store, model string
	answer       atomic.Pointer[http.HandlerFunc] // nil: OpenFGA's own
	release      chan struct{}                    // closed at the end, so that hanging requests end
}

func newRelationships(t testing.TB) *relationships {
	t.Helper()
	fga, err := embedded.NewFGA(context.Background())
	check(t, err)
	t.Cleanup(fga.Close)
	r := &relationships{fga: fga, release: make(chan struct{})}
	r.store, r.model = prepareStore(t, fga)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{Handler: http.HandlerFunc(r.serve)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		close(r.release)
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	r.url = "http://" + listener.Addr().String()
	return r
}

func prepareStore(t testing.TB, fga *embedded.FGA) (store, model string) {
	t.Helper()
	ctx := context.Background()
	store, err := fga.CreateStore(ctx, "acme")
	check(t, err)
	model, err = fga.WriteModel(ctx, store, fgamodels.DeputyJSON)
	check(t, err)
	check(t, fga.WriteTuples(ctx, store, worldTuples()...))
	return store, model
}

func (r *relationships) serve(w http.ResponseWriter, request *http.Request) {
	if answer := r.answer.Load(); answer != nil {
		(*answer)(w, request)
		return
	}
	r.fga.ServeHTTP(w, request)
}

// fail makes every request get this answer until heal.
func (r *relationships) fail(answer http.HandlerFunc) { r.answer.Store(&answer) }

func (r *relationships) heal() { r.answer.Store(nil) }

// blackHole never answers.
func (r *relationships) blackHole(http.ResponseWriter, *http.Request) { <-r.release }

// openFGA is the child process that the benchmarks call, so that its work does not count as
// Deputy's.
func openFGA(ctx context.Context, address string) error {
	fga, err := embedded.NewFGA(ctx)
	if err != nil {
		return err
	}
	defer fga.Close()
	store, err := fga.CreateStore(ctx, "acme")
	if err != nil {
		return err
	}
	if _, err := fga.WriteModel(ctx, store, fgamodels.DeputyJSON); err != nil {
		return err
	}
	if err := fga.WriteTuples(ctx, store, worldTuples()...); err != nil {
		return err
	}
	server := &http.Server{Addr: address, Handler: fga, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// The world of these tests: what alice permits the planner, what the planner permits the
// researcher, and so on.
const (
	alice      = delegation.Principal("user:alice")
	planner    = delegation.Principal("agent:planner")
	researcher = delegation.Principal("agent:researcher")
	calendar   = delegation.Principal("service:calendar")

	calendarAudience = "https://calendar.example"
	mailAudience     = "https://mail.example"
)

var worldScopes = delegation.Scopes{"calendar.read", "calendar.write", "mail.read"}

func edge(from, to delegation.Principal) policy.Relation {
	return policy.Relation{User: string(from), Relation: "delegator", Object: string(to)}
}

func worldTuples() []policy.Relation {
	tuples := []policy.Relation{edge(alice, planner), edge(planner, researcher)}
	for _, who := range []delegation.Principal{alice, planner, researcher} {
		for _, scope := range worldScopes {
			tuples = append(tuples, policy.Relation{User: string(who), Relation: "holder", Object: "scope:" + delegation.EncodeID(scope)})
		}
		for _, audience := range []string{calendarAudience, mailAudience} {
			tuples = append(tuples, policy.Relation{User: string(who), Relation: "accessor", Object: "resource:" + delegation.EncodeID(audience)})
		}
	}
	return tuples
}
