package policy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openfga "github.com/openfga/go-sdk"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/policy/policytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformanceOfTheFake(t *testing.T) {
	policytest.Run(t, func(*testing.T) policytest.Backend { return new(policytest.Fake) })
}

// Negative control of the property: it finds a checker that leaves out one dimension. Leaving out a
// check has the same effect as an answer that is always yes.
func TestPropertyNoticesAMissingDimension(t *testing.T) {
	for dimension, ignore := range map[string]func(policy.Relation) bool{
		"edges":     func(r policy.Relation) bool { return r.Relation == "delegator" },
		"scopes":    func(r policy.Relation) bool { return r.Relation == "holder" && !strings.Contains(r.Object, "|") },
		"pairs":     func(r policy.Relation) bool { return strings.Contains(r.Object, "|") },
		"audiences": func(r policy.Relation) bool { return r.Relation == "accessor" },
		"subject":   func(r policy.Relation) bool { return r.Relation != "delegator" && strings.HasPrefix(r.User, "user:") },
		"actor":     func(r policy.Relation) bool { return r.Relation != "delegator" && strings.HasPrefix(r.User, "agent:") },
		"nothing":   func(policy.Relation) bool { return false },
	} {
		fake := &policytest.Fake{Judge: func(r policy.Relation) (bool, bool) { return true, ignore(r) }}
		c, diverged := policytest.NewChecker(t, fake), 0
		for seed := range 200 {
			s := policytest.Samples().Example(seed)
			if err := fake.Write(t.Context(), s.World...); err != nil {
				t.Fatal(err)
			}
			if s.Divergence(t.Context(), c) != "" {
				diverged++
			}
			for _, r := range s.World {
				_ = fake.Delete(t.Context(), r) // a world may hold a relation twice
			}
		}
		if (diverged == 0) != (dimension == "nothing") {
			t.Errorf("without asking about %s: %d samples of 200 diverge", dimension, diverged)
		}
	}
}

// One exchange is one request, and a batch shares what its children share.
func TestRequestsAndChecksAreCounted(t *testing.T) {
	fake := new(policytest.Fake)
	c := policytest.NewChecker(t, fake)
	q, needed := policytest.Exchange()
	if _, err := c.Ask(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if calls := fake.Calls(); len(calls) != 1 || len(calls[0]) != len(needed) {
		t.Errorf("one question made the calls %v", calls)
	}

	fake = new(policytest.Fake)
	c = policytest.NewChecker(t, fake)
	children := make([]policy.Question, 100)
	for i := range children {
		children[i], _ = policytest.Exchange()
		child := delegation.Principal(fmt.Sprintf("agent:child-%d", i))
		children[i].Edges = append(children[i].Edges, policy.Edge{From: children[i].Actor, To: child})
		children[i].Actor = child
	}
	for _, answer := range c.AskAll(t.Context(), children) {
		if answer.Err != nil || answer.Decision.Checks != 9 {
			t.Fatalf("%+v", answer)
		}
	}
	// Shared: two edges, the subject's two scopes and audience. Of each child's own: its edge, two
	// scopes, audience.
	total, seen := 0, map[policy.Relation]bool{}
	for _, call := range fake.Calls() {
		total += len(call)
		for _, r := range call {
			seen[r] = true
		}
	}
	if want := 5 + 100*4; total != want || len(seen) != want || len(fake.Calls()) != (want+49)/50 {
		t.Errorf("%d checks, %d different, in %d requests; want %d in the fewest possible", total, len(seen), len(fake.Calls()), want)
	}
}

// body answers every request with the given body.
func body(status int, text string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(*http.Request, http.RoundTripper) (*http.Response, error) {
		return policytest.Response(status, text), nil
	}
}

// rewritten lets the fake answer and edits its answer.
func rewritten(edit func(string) string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(response.Body)
		return policytest.Response(response.StatusCode, edit(string(text))), err
	}
}

// faults are responses that decide nothing, whatever the store holds. lenient marks those that a
// decoder as lenient as the SDK's would take for an answer to the one check "0".
var faults = map[string]struct {
	lenient bool
	answer  func(*http.Request, http.RoundTripper) (*http.Response, error)
}{
	"no connection": {answer: func(*http.Request, http.RoundTripper) (*http.Response, error) { return nil, errors.New("refused") }},
	"nil answer":    {answer: func(*http.Request, http.RoundTripper) (*http.Response, error) { return nil, nil }},
	"nil body": {answer: func(*http.Request, http.RoundTripper) (*http.Response, error) {
		return &http.Response{StatusCode: 200}, nil
	}},
	"empty body":     {answer: body(200, "")},
	"null":           {answer: body(200, "null")},
	"empty object":   {answer: body(200, "{}")},
	"result is null": {answer: body(200, `{"result":null}`)},
	"no results":     {answer: body(200, `{"result":{}}`)},
	"array":          {answer: body(200, `[{"allowed":true}]`)},
	"HTML":           {answer: body(200, "<html><body>Sign in to the hotel's network</body></html>")},
	"HTML of type HTML": {answer: func(*http.Request, http.RoundTripper) (*http.Response, error) {
		r := policytest.Response(200, `{"result":{"0":{"allowed":true}}}`)
		r.Header.Set("Content-Type", "text/html")
		r.Body = io.NopCloser(strings.NewReader("<html>"))
		return r, nil
	}},
	"truncated": {answer: rewritten(func(s string) string { return s[:len(s)-1] })},
	"cut off by the connection": {answer: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		response.Body = io.NopCloser(io.MultiReader(io.LimitReader(response.Body, 9), brokenReader{}))
		return response, err
	}},
	"something after it":  {answer: rewritten(func(s string) string { return s + "{}" })},
	"check not answered":  {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{"allowed":true}`, `"0":{}`, 1) })},
	"allowed is null":     {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{"allowed":true}`, `"0":{"allowed":null}`, 1) })},
	"allowed is a string": {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{"allowed":true}`, `"0":{"allowed":"true"}`, 1) })},
	"allowed is a number": {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{"allowed":true}`, `"0":{"allowed":1}`, 1) })},
	"one check left out": {answer: rewritten(func(s string) string {
		return strings.Replace(strings.Replace(s, `"0":{"allowed":true},`, ``, 1), `"0":{"allowed":true}`, ``, 1)
	})},
	"an answer too many":     {lenient: true, answer: rewritten(func(s string) string { return strings.Replace(s, `"0":`, `"99":{"allowed":true},"0":`, 1) })},
	"unknown correlation id": {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":`, `"00":`, 1) })},
	"two answers to one check": {lenient: true, answer: rewritten(func(s string) string {
		return strings.Replace(s, `"0":{"allowed":true}`, `"0":{"allowed":false},"0":{"allowed":true}`, 1)
	})},
	"two results":        {lenient: true, answer: rewritten(func(s string) string { return strings.Replace(s, `{"result":`, `{"result":{},"result":`, 1) })},
	"two alloweds":       {lenient: true, answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{`, `"0":{"allowed":false,`, 1) })},
	"other case":         {lenient: true, answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{"allowed"`, `"0":{"Allowed"`, 1) })},
	"result in capitals": {lenient: true, answer: rewritten(func(s string) string { return strings.Replace(s, `"result"`, `"RESULT"`, 1) })},
	"error of one check": {answer: rewritten(func(s string) string {
		return strings.Replace(s, `"0":{"allowed":true}`, `"0":{"error":{"input_error":"validation_error","message":"type 'bot' not found"}}`, 1)
	})},
	"answer and error": {answer: rewritten(func(s string) string { return strings.Replace(s, `"0":{`, `"0":{"error":{},`, 1) })},
	"too long":         {lenient: true, answer: rewritten(func(s string) string { return s + strings.Repeat(" ", 1<<20) })},
	"endless": {answer: func(*http.Request, http.RoundTripper) (*http.Response, error) {
		r := policytest.Response(200, "")
		r.Body, r.ContentLength = io.NopCloser(zeros{}), -1
		return r, nil
	}},
	"204":          {lenient: true, answer: rewrittenStatus(http.StatusNoContent)},
	"201":          {lenient: true, answer: rewrittenStatus(http.StatusCreated)},
	"302":          {lenient: true, answer: rewrittenStatus(http.StatusFound)},
	"307 redirect": {lenient: true, answer: redirect},
	"400":          {answer: body(400, `{"code":"validation_error","message":"model not found"}`)},
	"401":          {answer: body(401, `{"code":"bearer_token_missing","message":"no"}`)},
	"404":          {answer: body(404, `{"code":"store_id_not_found","message":"no"}`)},
	"404 HTML":     {answer: body(404, `<html>`)},
	"429":          {answer: body(429, `{"code":"rate_limit_exceeded","message":"no"}`)},
	"500":          {answer: body(500, `{"code":"internal_error","message":"no"}`)},
	"503":          {lenient: true, answer: rewrittenStatus(http.StatusServiceUnavailable)},
}

func rewrittenStatus(status int) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err == nil {
			response.StatusCode = status
		}
		return response, err
	}
}

// redirect sends the first request to a host that answers yes to everything.
func redirect(r *http.Request, next http.RoundTripper) (*http.Response, error) {
	if r.URL.Host == "elsewhere.test" {
		return next.RoundTrip(r)
	}
	response := policytest.Response(http.StatusTemporaryRedirect, "")
	response.Header.Set("Location", "http://elsewhere.test"+r.URL.Path)
	return response, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Whatever OpenFGA does other than answering, the outcome is "unavailable": neither a yes nor
// "relation missing". The store holds everything the question needs; the same question without the
// fault is allowed, and without a relation it is refused with its name, so neither outcome is out
// of reach of the test.
func TestFaultsAreUnavailable(t *testing.T) {
	q, needed := policytest.Exchange()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			fake := &policytest.Fake{}
			if err := fake.Write(t.Context(), needed...); err != nil {
				t.Fatal(err)
			}
			healthy := policytest.NewChecker(t, fake)
			if d, err := healthy.Ask(t.Context(), q); err != nil || !d.Allowed {
				t.Fatalf("without the fault: %+v, %v", d, err)
			}
			fake.Answer = fault.answer
			c := policytest.NewChecker(t, fake)
			d, err := c.Ask(t.Context(), q)
			unavailable(t, d, err)
			if yes, err := c.Has(t.Context(), needed[0]); yes || err == nil {
				t.Errorf("Has returned %v, %v", yes, err)
			}
			for _, answer := range c.AskAll(t.Context(), []policy.Question{q, q}) {
				unavailable(t, answer.Decision, answer.Err)
			}
		})
	}
}

func unavailable(t *testing.T, d policy.Decision, err error) {
	t.Helper()
	e := delegation.AsError(err)
	if e == nil || e.Reason != delegation.DependencyDown || d != (policy.Decision{}) {
		t.Fatalf("decision %+v, error %v", d, err)
	}
	for _, foreign := range []string{"html", "validation_error", "elsewhere", "refused", "model not found", "openfga.test"} {
		if strings.Contains(strings.ToLower(e.Error()), foreign) {
			t.Errorf("the wire would read %q", e)
		}
	}
	if errors.Unwrap(e) == nil {
		t.Error("the cause is lost for log and ledger")
	}
}

// Negative control: these faults hold a yes that a reader without our strictness takes. Each of
// them is read by the SDK's own types from what a default http.Client brings, with any status and
// any length.
func TestLenientDecoderWouldAllow(t *testing.T) {
	subject := policy.Relation{User: "user:alice", Relation: "holder", Object: "scope:calendar.read"}
	for name, fault := range faults {
		fake := &policytest.Fake{Judge: func(policy.Relation) (bool, bool) { return true, true }}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://openfga.test/stores/"+policytest.FakeStore+"/batch-check",
			strings.NewReader(fmt.Sprintf(`{"authorization_model_id":%q,"consistency":"HIGHER_CONSISTENCY","checks":[{"correlation_id":"0","tuple_key":{"user":%q,"relation":%q,"object":%q}}]}`,
				policytest.FakeModel, subject.User, subject.Relation, subject.Object)))
		if err != nil {
			t.Fatal(err)
		}
		fake.Answer = fault.answer
		allowed := false
		if response, err := (&http.Client{Transport: fake}).Do(request); err == nil {
			text, err := io.ReadAll(io.LimitReader(response.Body, 2<<20))
			var answer openfga.BatchCheckResponse
			if err == nil && jsonUnmarshal(text, &answer) == nil {
				first := answer.GetResult()["0"]
				allowed = first.GetAllowed() && first.Error == nil
			}
		}
		if allowed != fault.lenient {
			t.Errorf("%s: a lenient reader allows: %v, want %v", name, allowed, fault.lenient)
		}
	}
}

// impatient makes a checker with the ordinary deadline.
func impatient(t *testing.T, fake *policytest.Fake) *policy.Checker {
	t.Helper()
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Transport: fake})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A slow OpenFGA is given up at the deadline, without another try.
func TestDeadline(t *testing.T) {
	q, _ := policytest.Exchange()
	for name, questions := range map[string]int{"one question": 1, "many requests": 300} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := &policytest.Fake{Answer: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}}
				c := impatient(t, fake)
				batch := make([]policy.Question, questions)
				for i := range batch {
					batch[i] = q
					batch[i].Scopes = delegation.Scopes{fmt.Sprint("s", i)}
				}
				began := time.Now()
				for _, answer := range c.AskAll(t.Context(), batch) {
					unavailable(t, answer.Decision, answer.Err)
				}
				if took := time.Since(began); took != policy.DefaultTimeout {
					t.Errorf("gave up after %v, want %v", took, policy.DefaultTimeout)
				}
			})
		})
	}
}

// The caller's own end counts too, and a body that stops coming is a slow answer.
func TestCancelAndStall(t *testing.T) {
	q, _ := policytest.Exchange()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d, err := policytest.NewChecker(t, new(policytest.Fake)).Ask(ctx, q)
	unavailable(t, d, err)

	stalled := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"result":{"0":{"allowed":true}`)
		w.(http.Flusher).Flush()
		<-stalled
	}))
	defer server.Close()
	defer close(stalled)
	c, err := policy.New(policy.Config{URL: server.URL, StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err = c.Ask(t.Context(), q)
	unavailable(t, d, err)
}

// An OpenFGA that comes back is used again at once: nothing has to be reset.
func TestRecovery(t *testing.T) {
	q, needed := policytest.Exchange()
	down := true
	fake := &policytest.Fake{Answer: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		if down {
			return nil, errors.New("connection refused")
		}
		return next.RoundTrip(r)
	}}
	if err := fake.Write(t.Context(), needed...); err != nil {
		t.Fatal(err)
	}
	c := policytest.NewChecker(t, fake)
	d, err := c.Ask(t.Context(), q)
	unavailable(t, d, err)
	down = false
	if d, err := c.Ask(t.Context(), q); err != nil || !d.Allowed {
		t.Errorf("after recovery: %+v, %v", d, err)
	}
}

// A check that OpenFGA cannot evaluate affects only the question that put it.
func TestOneFailedCheckIsItsQuestionsAlone(t *testing.T) {
	q, needed := policytest.Exchange()
	fake := &policytest.Fake{}
	if err := fake.Write(t.Context(), needed...); err != nil {
		t.Fatal(err)
	}
	other := q
	other.Scopes = delegation.Scopes{"unheard-of"}
	index := len(needed) // other's first own check comes right after those of q
	fake.Answer = rewritten(func(s string) string {
		return strings.Replace(s, fmt.Sprintf(`"%d":{"allowed":false}`, index), fmt.Sprintf(`"%d":{"error":{"message":"too complex"}}`, index), 1)
	})
	answers := policytest.NewChecker(t, fake).AskAll(t.Context(), []policy.Question{q, other})
	if answers[0].Err != nil || !answers[0].Decision.Allowed {
		t.Errorf("the sound question: %+v", answers[0])
	}
	unavailable(t, answers[1].Decision, answers[1].Err)
}

// The preshared key goes to OpenFGA and into nothing else.
func TestTokenIsSentAndNeverShown(t *testing.T) {
	const secret = "s3cr3t-preshared-key"
	var seen string
	fake := &policytest.Fake{Answer: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		seen = r.Header.Get("Authorization")
		return policytest.Response(http.StatusUnauthorized, `{"code":"unauthenticated","message":"no"}`), nil
	}}
	c, err := policy.New(policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Transport: fake, Token: secret})
	if err != nil {
		t.Fatal(err)
	}
	q, _ := policytest.Exchange()
	_, err = c.Ask(t.Context(), q)
	if seen != "Bearer "+secret {
		t.Errorf("OpenFGA saw %q", seen)
	}
	for ; err != nil; err = errors.Unwrap(err) {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
			t.Errorf("the error holds the key: %q", err)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := policy.Config{URL: "http://openfga.test", StoreID: policytest.FakeStore, ModelID: policytest.FakeModel, Transport: new(policytest.Fake)}
	for _, tenant := range []string{"acme", "globex"} {
		config.Registerer = prometheus.WrapRegistererWith(prometheus.Labels{"tenant": tenant}, registry)
		c, err := policy.New(config)
		if err != nil {
			t.Fatal(err)
		}
		q, _ := policytest.Exchange()
		if _, err := c.Ask(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 2 || len(families[0].Metric) != 2 || families[0].Metric[0].GetCounter().GetValue() != 8 {
		t.Errorf("gathered %v, %v", families, err)
	}
}
