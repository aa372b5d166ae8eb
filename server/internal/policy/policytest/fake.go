package policytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/internal/policy"
)

// Fake answers the part of OpenFGA's HTTP API that the policy checker uses, from a set of direct
// relationships: no groups, no rewrites, no validation against the model. Its zero value is an
// empty store with the shipped model. Use it where a test needs answers quickly or needs them
// wrong; whether the questions are right is shown against a real OpenFGA in server/embedded.
type Fake struct {
	// Answer, if set, answers in place of the fake. It sees each request before its body is read
	// and may call next for the fake's own answer. Set it before the first request.
	Answer func(r *http.Request, next http.RoundTripper) (*http.Response, error)
	// Judge, if set, decides each relation first; with ok its yes or no counts instead of the
	// store's.
	Judge func(r policy.Relation) (yes, ok bool)

	mu       sync.Mutex
	tuples   map[policy.Relation]bool
	calls    [][]policy.Relation
	log      []logged
	rows     int // that were ever in it
	readings int
}

// The ids of the fake's only store and model.
const (
	FakeStore = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	FakeModel = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

// IDs are FakeStore and FakeModel.
func (f *Fake) IDs() (store, model string) { return FakeStore, FakeModel }

// Write adds relationships.
func (f *Fake) Write(_ context.Context, relations ...policy.Relation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tuples == nil {
		f.tuples = make(map[policy.Relation]bool)
	}
	for _, r := range relations {
		if !f.tuples[r] {
			f.tuples[r] = true
			f.enter(r, "WRITE", time.Now())
		}
	}
	return nil
}

// Delete removes relationships.
func (f *Fake) Delete(_ context.Context, relations ...policy.Relation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range relations {
		if !f.tuples[r] {
			return fmt.Errorf("%s is not there", r)
		}
		delete(f.tuples, r)
		f.enter(r, "DELETE", time.Now())
	}
	return nil
}

// Calls returns what each BatchCheck so far asked about.
func (f *Fake) Calls() [][]policy.Relation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// RoundTrip answers a request.
func (f *Fake) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	if f.Answer != nil {
		return f.Answer(r, roundTripper(f.answer))
	}
	return f.answer(r)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (f *Fake) answer(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	switch store := "/stores/" + FakeStore; {
	case r.Method == http.MethodPost && r.URL.Path == store+"/batch-check":
		return f.batchCheck(r)
	case r.Method == http.MethodPost && r.URL.Path == store+"/list-objects":
		return f.listObjects(r)
	case r.Method == http.MethodPost && r.URL.Path == store+"/list-users":
		return f.listUsers(r)
	case r.Method == http.MethodGet && r.URL.Path == store+"/changes":
		return f.readChanges(r)
	case r.Method == http.MethodGet && r.URL.Path == store:
		return Response(http.StatusOK, fmt.Sprintf(`{"id":%q,"name":"fake","created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}`, FakeStore)), nil
	case r.Method == http.MethodGet && r.URL.Path == store+"/authorization-models/"+FakeModel:
		withID := strings.Replace(string(fgamodels.DeputyJSON), "{", fmt.Sprintf(`{"id":%q,`, FakeModel), 1)
		return Response(http.StatusOK, `{"authorization_model":`+withID+`}`), nil
	}
	return Response(http.StatusNotFound, `{"code":"store_id_not_found","message":"not found"}`), nil
}

func (f *Fake) batchCheck(r *http.Request) (*http.Response, error) {
	var request struct {
		Model       string `json:"authorization_model_id"`
		Consistency string `json:"consistency"`
		Checks      []struct {
			Tuple policy.Relation `json:"tuple_key"`
			ID    string          `json:"correlation_id"`
		} `json:"checks"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, err
	}
	if request.Model != FakeModel || request.Consistency != "HIGHER_CONSISTENCY" || len(request.Checks) == 0 || len(request.Checks) > policy.DefaultMaxChecks {
		return Response(http.StatusBadRequest, `{"code":"validation_error","message":"unpinned, inconsistent, empty or too large"}`), nil
	}
	results := make(map[string]map[string]bool, len(request.Checks))
	f.mu.Lock()
	defer f.mu.Unlock()
	var asked []policy.Relation
	for _, check := range request.Checks {
		yes, judged := false, false
		if f.Judge != nil {
			yes, judged = f.Judge(check.Tuple)
		}
		if !judged {
			yes = f.tuples[check.Tuple]
		}
		results[check.ID] = map[string]bool{"allowed": yes}
		asked = append(asked, check.Tuple)
	}
	f.calls = append(f.calls, asked)
	body, err := json.Marshal(map[string]any{"result": results})
	return Response(http.StatusOK, string(body)), err
}

// pinned returns whether a request names the one model and demands no stale answer.
func pinned(model, consistency string) bool {
	return model == FakeModel && consistency == "HIGHER_CONSISTENCY"
}

var unpinned = `{"code":"validation_error","message":"unpinned or inconsistent"}`

func (f *Fake) listObjects(r *http.Request) (*http.Response, error) {
	var request struct {
		Model       string `json:"authorization_model_id"`
		Consistency string `json:"consistency"`
		Type        string `json:"type"`
		Relation    string `json:"relation"`
		User        string `json:"user"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, err
	}
	if !pinned(request.Model, request.Consistency) {
		return Response(http.StatusBadRequest, unpinned), nil
	}
	objects := []string{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for t := range f.tuples {
		if t.User == request.User && t.Relation == request.Relation && strings.HasPrefix(t.Object, request.Type+":") {
			objects = append(objects, t.Object)
		}
	}
	body, err := json.Marshal(map[string]any{"objects": objects})
	return Response(http.StatusOK, string(body)), err
}

func (f *Fake) listUsers(r *http.Request) (*http.Response, error) {
	type named struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	}
	var request struct {
		Model       string  `json:"authorization_model_id"`
		Consistency string  `json:"consistency"`
		Object      named   `json:"object"`
		Relation    string  `json:"relation"`
		Filters     []named `json:"user_filters"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, err
	}
	if !pinned(request.Model, request.Consistency) || len(request.Filters) != 1 {
		return Response(http.StatusBadRequest, unpinned), nil
	}
	users := []map[string]named{}
	f.mu.Lock()
	defer f.mu.Unlock()
	for t := range f.tuples {
		id, fits := strings.CutPrefix(t.User, request.Filters[0].Type+":")
		if fits && t.Relation == request.Relation && t.Object == request.Object.Type+":"+request.Object.ID {
			users = append(users, map[string]named{"object": {request.Filters[0].Type, id}})
		}
	}
	body, err := json.Marshal(map[string]any{"users": users})
	return Response(http.StatusOK, string(body)), err
}

// Response makes an answer with a JSON body.
func Response(status int, body string) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/json"}, "Date": {time.Now().UTC().Format(http.TimeFormat)}},
		Body:          io.NopCloser(bytes.NewReader([]byte(body))),
		ContentLength: int64(len(body)),
	}
}
