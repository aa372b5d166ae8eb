package client

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// TestHandler has a row for each clause of RFC 6750 that a resource server can break.
func TestHandler(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	good := s.Token(s.Claims(time.Now()))
	bound := s.Claims(time.Now())
	bound.Confirmation = &delegation.Confirmation{JKT: "thumb"}
	bound.Delegation.Hops[1].Key = "thumb"
	handler := v.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := FromContext(r.Context())
		if !ok || d.Actor() != "agent:researcher" {
			t.Error("the handler runs without a delegation")
		}
		w.WriteHeader(http.StatusNoContent)
	}), "calendar.read")

	const realm = `Bearer realm="https://calendar.example"`
	const invalid = realm + `, error="invalid_token", error_description=`
	tests := map[string]struct {
		query         string
		authorization []string
		status        int
		challenge     string
	}{
		"§2.1 a good token":                 {"", []string{"Bearer " + good}, 204, ""},
		"RFC 9110 §11.1 the scheme's case":  {"", []string{"bearer " + good}, 204, ""},
		"§3.1 no token: no error code":      {"", nil, 401, realm},
		"§3 another scheme":                 {"", []string{"Basic dTpw"}, 401, realm},
		"§3.1 an empty token":               {"", []string{"Bearer "}, 400, realm + `, error="invalid_request", error_description="the Authorization header holds no token"`},
		"§2 two headers":                    {"", []string{"Bearer " + good, "Bearer " + good}, 400, realm + `, error="invalid_request", error_description="more than one Authorization header"`},
		"§2.3 a token in the query":         {"?access_token=x", []string{"Bearer " + good}, 400, realm + `, error="invalid_request", error_description="a token in the query is not accepted"`},
		"§3.1 nonsense":                     {"", []string{"Bearer x"}, 401, invalid + `"the token is malformed"`},
		"two spaces":                        {"", []string{"Bearer  " + good}, 401, invalid + `"the token is malformed"`},
		"two tokens":                        {"", []string{"Bearer " + good + ", Bearer " + good}, 401, invalid + `"the token is malformed"`},
		"bound to a key":                    {"", []string{"Bearer " + s.Token(bound)}, 401, invalid + `"the token is bound to a key, and this server takes no proof of it"`},
		"bound to a key, and proof claimed": {"", []string{"DPoP " + s.Token(bound)}, 401, invalid + `"the token is bound to a key, and this server takes no proof of it"`},
	}
	for name, test := range tests {
		r := httptest.NewRequest(http.MethodGet, "/events"+test.query, nil)
		r.Header["Authorization"] = test.authorization
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != test.status || w.Header().Get("WWW-Authenticate") != test.challenge {
			t.Errorf("%s: %d %s", name, w.Code, w.Header().Get("WWW-Authenticate"))
		}
		if test.status != 204 && w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: the refusal can be cached", name)
		}
	}
}

func TestHandlerScopes(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	ask := func(h http.Handler) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
		r.Header.Set("Authorization", "Bearer "+s.Token(s.Claims(time.Now())))
		h.ServeHTTP(w, r)
		return w
	}
	want := `Bearer realm="https://calendar.example", error="insufficient_scope", error_description="the token does not allow this", scope="calendar.read calendar.write"`
	if w := ask(v.Handler(ok, "calendar.read", "calendar.write")); w.Code != 403 || w.Header().Get("WWW-Authenticate") != want {
		t.Errorf("%d %s", w.Code, w.Header().Get("WWW-Authenticate"))
	}
	for _, scope := range []string{"", "*", "calendar", "Calendar.Read", "calendar.read "} {
		if w := ask(v.Handler(ok, scope)); w.Code != 403 {
			t.Errorf("scope %q: %d", scope, w.Code)
		}
	}
	if w := ask(v.Handler(ok, "calendar.read")); w.Code != 204 {
		t.Errorf("negative control: %d", w.Code)
	}
}

func TestHandlerWithoutKeys(t *testing.T) {
	s := startDeputy(t)
	k := startKeys(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) })
	h := fetchingVerifier(t, s, k.URL, newClock()).Handler(http.NotFoundHandler())
	r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
	r.Header.Set("Authorization", "Bearer "+s.Token(s.Claims(time.Now())))
	h.ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") != "1" || strings.Contains(w.Body.String(), k.URL) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// TestErrorsHoldNoToken logs every kind of refusal with its causes.
func TestErrorsHoldNoToken(t *testing.T) {
	s := startDeputy(t)
	v := fixedVerifier(t, s)
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for _, token := range []string{canary, canary + ".x.y", s.Token(s.Claims(time.Now())) + canary, canary + "." + canary + "." + canary} {
		_, err := v.Verify(t.Context(), token)
		for ; err != nil; err = unwrap(err) {
			logger.Error("refused", "err", err)
		}
	}
	if log.Len() == 0 || strings.Contains(log.String(), canary) {
		t.Errorf("log = %s", &log)
	}
	if logger.Error("negative control", "token", canary); !strings.Contains(log.String(), canary) {
		t.Error("negative control: the log does not show what is in it")
	}
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return nil
}
