package exchangetest

import (
	"context"
	"net/http"
	"sync"

	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// FGA stands in for OpenFGA behind the policy package's transport: it answers from a set of tuples,
// without evaluating a model. The tests of policy run against the real server; here what matters is what
// the exchange makes of an answer, and of none.
type FGA struct {
	store policytest.Fake

	mu    sync.Mutex
	gate  func(*http.Request) error // runs before each answer
	asked int
}

// Allow adds a tuple.
func (f *FGA) Allow(user, relation, object string) {
	_ = f.store.Write(context.Background(), policy.Relation{User: user, Relation: relation, Object: object}) // has no way to fail
}

// Deny removes a tuple, if it is there.
func (f *FGA) Deny(user, relation, object string) {
	_ = f.store.Delete(context.Background(), policy.Relation{User: user, Relation: relation, Object: object})
}

// Gate makes every request pass through gate first; its error is the transport's. nil opens it.
func (f *FGA) Gate(gate func(*http.Request) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = gate
}

// Asked counts the requests so far.
func (f *FGA) Asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// RoundTrip implements http.RoundTripper.
func (f *FGA) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.asked++
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		if err := gate(r); err != nil {
			return nil, err
		}
	}
	return f.store.RoundTrip(r)
}
