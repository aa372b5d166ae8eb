package exchangetest

import (
	"context"
	"net/http"
	"sync"

	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// FGA replaces OpenFGA behind the transport of the policy package. It answers from a set of tuples
// and evaluates no model. The tests of policy run against the real server. The tests here are about
// what the exchange does with an answer, and without one.
type FGA struct {
	store policytest.Fake

	mu    sync.Mutex
	gate  func(*http.Request) error // runs before each answer
	asked int
}

// Allow adds a tuple.
func (f *FGA) Allow(user, relation, object string) {
	_ = f.store.Write(context.Background(), policy.Relation{User: user, Relation: relation, Object: object}) // cannot fail
}

// Deny removes a tuple, if it is there.
func (f *FGA) Deny(user, relation, object string) {
	_ = f.store.Delete(context.Background(), policy.Relation{User: user, Relation: relation, Object: object})
}

// Gate makes each request pass through gate first. Its error becomes the transport's. nil removes
// the gate.
func (f *FGA) Gate(gate func(*http.Request) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = gate
}

// Asked is the number of requests so far.
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
