package embedded

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	fgamodels "deputy.example/deputy/fga-models"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

// What is answered directly is answered as the gateway would, and what cannot be goes through it.
func TestDirectAnswersAreTheGateways(t *testing.T) {
	f := startFGA(t)
	s := newStore(t, f, fgamodels.DeputyJSON)
	if err := s.Write(t.Context(), policy.Relation{User: "user:alice", Relation: "delegator", Object: "agent:planner"}); err != nil {
		t.Fatal(err)
	}
	check := func(id, user, relation string) string {
		return fmt.Sprintf(`{"tuple_key":{"user":%q,"relation":%q,"object":"agent:planner"},"correlation_id":%q}`, user, relation, id)
	}
	batch := func(consistency string, checks ...string) string {
		return fmt.Sprintf(`{"checks":[%s],"authorization_model_id":%q,"consistency":%q}`, strings.Join(checks, ","), s.model, consistency)
	}
	yes, no := check("0", "user:alice", "delegator"), check("1", "user:bob", "delegator")
	changes := func(pairs ...string) string {
		q := make(url.Values)
		for i := 0; i < len(pairs); i += 2 {
			q.Add(pairs[i], pairs[i+1])
		}
		return "/stores/" + s.id + "/changes?" + q.Encode()
	}
	empty, err := f.CreateStore(t.Context(), "empty")
	if err != nil {
		t.Fatal(err)
	}
	all := httptest.NewRecorder()
	f.handler.ServeHTTP(all, httptest.NewRequest("GET", changes(), nil))
	var read struct {
		Token string `json:"continuation_token"`
	}
	if err := json.Unmarshal(all.Body.Bytes(), &read); err != nil || read.Token == "" {
		t.Fatal(all.Body, err)
	}
	before := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339Nano)
	for _, c := range []struct {
		name, method, path, body string
		direct                   bool
	}{
		{"a yes and a no", "POST", "/batch-check", batch("HIGHER_CONSISTENCY", yes, no), true},
		{"another consistency", "POST", "/batch-check", batch("MINIMIZE_LATENCY", yes), true},
		{"one that there is not", "POST", "/batch-check", batch("LOW", yes), false},
		{"a relation that there is not", "POST", "/batch-check", batch("HIGHER_CONSISTENCY", yes, check("1", "user:bob", "nothing")), false},
		{"no checks", "POST", "/batch-check", batch("HIGHER_CONSISTENCY"), false},
		{"an id twice", "POST", "/batch-check", batch("HIGHER_CONSISTENCY", yes, yes), false},
		{"an id that is none", "POST", "/batch-check", batch("HIGHER_CONSISTENCY", check(`"`, "user:bob", "delegator")), false},
		{"a member twice", "POST", "/batch-check", strings.Replace(batch("HIGHER_CONSISTENCY", yes), "{", `{"checks":[],`, 1), false},
		{"a member that there is not", "POST", "/batch-check", strings.Replace(batch("HIGHER_CONSISTENCY", yes), "{", `{"more":1,`, 1), false},
		{"tuples of the question", "POST", "/batch-check", strings.Replace(batch("HIGHER_CONSISTENCY", no), `"correlation_id"`,
			`"contextual_tuples":{"tuple_keys":[{"user":"user:bob","relation":"delegator","object":"agent:planner"}]},"correlation_id"`, 1), false},
		{"no JSON", "POST", "/batch-check", "{", false},
		{"another model", "POST", "/batch-check", strings.Replace(batch("HIGHER_CONSISTENCY", yes), s.model, s.id, 1), false},
		{"nothing changed", "GET", changes("page_size", "100", "continuation_token", read.Token), "", true},
		{"nothing was written", "GET", "/stores/" + empty + "/changes?page_size=100&start_time=" + before, "", true},
		{"one change", "GET", changes("page_size", "100"), "", false},
		{"a page of nothing", "GET", changes("page_size", "0"), "", false},
		{"a page of many", "GET", changes("page_size", "99999999999"), "", false},
		{"a time that is none", "GET", changes("start_time", "yesterday"), "", false},
		{"a token that is none", "GET", changes("continuation_token", "!"), "", false},
		{"two times", "GET", changes("start_time", before, "start_time", before), "", false},
		{"of one type", "GET", changes("type", "agent"), "", false},
		{"another store", "GET", "/stores/none/changes", "", false},
		{"another method", "GET", "/stores/" + s.id, "", false},
	} {
		if !strings.HasPrefix(c.path, "/stores") {
			c.path = "/stores/" + s.id + c.path
		}
		request := func() *http.Request { return httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)) }
		want := httptest.NewRecorder()
		f.handler.ServeHTTP(want, request())
		asked, gateway := false, f.handler
		f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = true; gateway.ServeHTTP(w, r) })
		got, err := f.RoundTrip(request())
		f.handler = gateway
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if asked == c.direct || got.StatusCode != want.Code || got.Header.Get("Content-Type") != want.Header().Get("Content-Type") {
			t.Errorf("%s: directly %t, %d %s, want %t, %d %s", c.name, !asked, got.StatusCode, got.Header.Get("Content-Type"), c.direct, want.Code, want.Header().Get("Content-Type"))
		}
		body, _ := io.ReadAll(got.Body)
		var a, b any
		if errors.Join(json.Unmarshal(body, &a), json.Unmarshal(want.Body.Bytes(), &b)) != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: %s, want %s", c.name, body, want.Body)
		}
	}
}

// The checker's own requests are among those that are answered directly. This test fails if the
// checker encodes them differently.
func TestTheCheckerIsAnsweredDirectly(t *testing.T) {
	f := startFGA(t)
	s := newStore(t, f, fgamodels.DeputyJSON)
	q, needed := policytest.Exchange()
	if err := s.Write(t.Context(), needed...); err != nil {
		t.Fatal(err)
	}
	direct, remembering := s.checker(t, policy.Mapping{}), s.remembering(t, policy.Mapping{})
	for _, c := range []*policy.Checker{direct, remembering} {
		if err := c.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := remembering.Ask(t.Context(), q); err != nil { // reads the model
		t.Fatal(err)
	}
	f.handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/changes") { // the tuples are new, and so are the changes
			t.Errorf("%s %s went through the gateway", r.Method, r.URL)
		}
		panic(http.ErrAbortHandler)
	})
	for _, c := range []*policy.Checker{direct, remembering} {
		if d, err := c.Ask(t.Context(), q); err != nil || !d.Allowed {
			t.Errorf("%+v, %v", d, err)
		}
	}
}
