package exchangetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
)

// FGA stands in for OpenFGA behind the policy package's transport: it answers BatchCheck from a set
// of tuples, without a model. The tests of policy run against the real server; here what matters is
// what the exchange makes of an answer, and of none.
type FGA struct {
	mu     sync.Mutex
	tuples map[[3]string]bool
	gate   func(*http.Request) error // runs before each answer
	asked  int
}

// Allow adds a tuple.
func (f *FGA) Allow(user, relation, object string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tuples == nil {
		f.tuples = make(map[[3]string]bool)
	}
	f.tuples[[3]string{user, relation, object}] = true
}

// Deny removes a tuple.
func (f *FGA) Deny(user, relation, object string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tuples, [3]string{user, relation, object})
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
	if !strings.HasSuffix(r.URL.Path, "/batch-check") {
		return answer(r, http.StatusOK, map[string]any{})
	}
	var body struct {
		Checks []struct {
			Tuple struct{ User, Relation, Object string } `json:"tuple_key"`
			ID    string                                  `json:"correlation_id"`
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return answer(r, http.StatusBadRequest, map[string]any{"code": "validation_error"})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	results := make(map[string]any, len(body.Checks))
	for _, c := range body.Checks {
		results[c.ID] = map[string]bool{"allowed": f.tuples[[3]string{c.Tuple.User, c.Tuple.Relation, c.Tuple.Object}]}
	}
	return answer(r, http.StatusOK, map[string]any{"result": results})
}

func answer(r *http.Request, status int, body any) (*http.Response, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(raw)), ContentLength: int64(len(raw)),
	}, nil
}
