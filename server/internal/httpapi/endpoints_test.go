package httpapi

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// endpointRules are what every endpoint must have: the methods that it answers, and the gates
// before it. An endpoint that is added without a line here fails the test, and so does a line
// without an endpoint.
var endpointRules = map[string]struct{ methods, gates string }{
	pathToken:                            {"POST", "query authorization proof"},
	pathIntrospect:                       {"POST", "query proof"},
	pathRevoke:                           {"POST", "query proof"},
	pathJWKS:                             {"GET HEAD", ""},
	pathMetadata:                         {"GET HEAD", ""},
	exchange.PathStatusLists + anyNumber: {"GET HEAD", ""},
}

func TestEveryEndpointHasARule(t *testing.T) {
	h := newHandler(t, Config{Engine: granting(t)})
	met := make(map[string]bool)
	for path, ep := range h.endpoints {
		name := strings.Replace(path, "/t/acme", "", 1)
		rule, known := endpointRules[name]
		if met[name] = true; !known {
			t.Errorf("%s has no rule", path)
			continue
		}
		var gates []string
		for _, g := range ep.gates {
			gates = append(gates, g.name)
		}
		if got := strings.Join(ep.methods, " "); got != rule.methods {
			t.Errorf("%s answers %q, want %q", path, got, rule.methods)
		}
		if got := strings.Join(gates, " "); got != rule.gates {
			t.Errorf("%s has the gates %q, want %q", path, got, rule.gates)
		}
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"} {
			if slices.Contains(ep.methods, method) {
				continue
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, strings.Replace(path, anyNumber, "0", 1), nil))
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != strings.Join(ep.methods, ", ") {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
	for name := range endpointRules {
		if !met[name] {
			t.Errorf("%s is not there", name)
		}
	}
}

// TestEveryParameterHasABound: a value one byte longer than its bound is refused by name before the
// engine is called. A value of exactly the bound passes. A parameter that is added without a bound
// fails here.
func TestEveryParameterHasABound(t *testing.T) {
	for path, known := range map[string]map[string]arity{
		pathToken: tokenParameters, pathIntrospect: introspectParameters, pathRevoke: revokeParameters,
	} {
		for name, kind := range known {
			most := exchange.Bound(name)
			switch {
			case kind == unsupported:
				continue
			case most == 0:
				t.Errorf("%s of %s has no bound", name, path)
				continue
			}
			for _, beyond := range []bool{true, false} {
				engine := granting(t)
				form := exchangeForm()
				form.Set("token", "x")
				length := most + 1
				if !beyond {
					length = min(most, maxBodyBytes-2000) // the room in a body
				}
				form.Set(name, strings.Repeat("1", length))
				w, got := answerTo(t, newHandler(t, Config{Engine: engine}), post(path, form))
				tooLong := got["reason"] == string(delegation.RequestTooLarge) || got["field"] == name && strings.HasPrefix(description(got), "must have at most ")
				if tooLong != beyond {
					t.Errorf("%s of %s with %d bytes: %d %v", name, path, length, w.Code, got)
				}
			}
		}
	}
}

func description(answer map[string]any) string {
	text, _ := answer["error_description"].(string)
	return text
}

// TestParametersWithoutABound is the control: without the bound the long value passes.
func TestParametersWithoutABound(t *testing.T) {
	form := exchangeForm()
	form.Set("client_id", strings.Repeat("a", exchange.Bound("client_id")+1))
	p, err := parseForm(form.Encode(), tokenParameters)
	if err != nil || p.text("client_id") != form.Get("client_id") {
		t.Fatal(err)
	}
	if e := delegation.AsError(p.fit(tokenParameters)); e == nil || e.Field != "client_id" {
		t.Error(e)
	}
	if err := (parameters(url.Values{"added_later": {"x"}})).fit(map[string]arity{"added_later": single}); err == nil {
		t.Error("a parameter without a bound took a value")
	}
}
