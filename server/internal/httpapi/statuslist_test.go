package httpapi

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

func TestStatusList(t *testing.T) {
	for path, want := range map[string]string{
		"/oauth2/statuslist/0":               "default 0",
		"/t/acme/oauth2/statuslist/17":       "acme 17",
		"/t/acme/oauth2/statuslist/17?x=y":   "acme 17",
		"/t/acme/oauth2/statuslist/99999999": "acme 99999999",
	} {
		engine := granting(t)
		w := httptest.NewRecorder()
		newHandler(t, Config{Engine: engine}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		header := w.Header()
		if w.Code != http.StatusOK || w.Body.String() != signedToken || header.Get("Content-Type") != "application/statuslist+jwt" ||
			header.Get("Cache-Control") != "public, max-age=4" || !slices.Equal(engine.listed, []string{want}) {
			t.Errorf("%s: %d %v %q, asked for %v", path, w.Code, header, w.Body, engine.listed)
		}
	}
}

// TestStatusListRefuses: an address of no list gets the answer of every unknown address, and no
// work is done.
func TestStatusListRefuses(t *testing.T) {
	nothing, _ := answerTo(t, newHandler(t, Config{Engine: granting(t)}), httptest.NewRequest(http.MethodGet, "/nothing", nil))
	for _, path := range []string{
		"/oauth2/statuslist", "/oauth2/statuslist/", "/oauth2/statuslist/00", "/oauth2/statuslist/-1", "/oauth2/statuslist/+1", "/oauth2/statuslist/x",
		"/oauth2/statuslist/1/", "/oauth2/statuslist/1/2", "/oauth2/statuslist/%31", "/oauth2/statuslist/70368744177664", "/oauth2/statuslist/18446744073709551616",
		"/oauth2/statuslist/%7Bnumber%7D", "/t/other/oauth2/statuslist/0", "/t/acme//oauth2/statuslist/0", "/x/oauth2/statuslist/0",
	} {
		engine := granting(t)
		w, _ := answerTo(t, newHandler(t, Config{Engine: engine}), httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusNotFound || w.Body.String() != nothing.Body.String() || len(engine.listed) > 0 {
			t.Errorf("%s: %d %q, asked for %v", path, w.Code, w.Body, engine.listed)
		}
	}
	for _, c := range []struct {
		name, method, target string
		err                  error
		status               int
		retryAfter           string
	}{
		{"unknown", http.MethodGet, "/oauth2/statuslist/0", delegation.Refuse(delegation.NotFound, "", "there is nothing at this address"), http.StatusNotFound, ""},
		{"not in time", http.MethodGet, "/oauth2/statuslist/0", delegation.Unavailable("ledger", errors.New("cause-secret")), http.StatusServiceUnavailable, "1"},
		{"an error of no kind", http.MethodGet, "/oauth2/statuslist/0", errors.New("cause-secret"), http.StatusInternalServerError, ""},
		{"another time", http.MethodGet, "/oauth2/statuslist/0?time=1795305600", nil, http.StatusBadRequest, ""},
		{"posted", http.MethodPost, "/oauth2/statuslist/0", nil, http.StatusMethodNotAllowed, ""},
	} {
		engine := granting(t)
		engine.list = func() (exchange.StatusList, error) {
			return exchange.StatusList{Token: signedToken, MaxAge: time.Second}, c.err
		}
		w, _ := answerTo(t, newHandler(t, Config{Engine: engine}), httptest.NewRequest(c.method, c.target, nil))
		if w.Code != c.status || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Retry-After") != c.retryAfter {
			t.Errorf("%s: %d %v %q", c.name, w.Code, w.Header(), w.Body)
		}
		if c.name == "unknown" && w.Body.String() != nothing.Body.String() {
			t.Errorf("an unknown list answers %q, an unknown address %q", w.Body, nothing.Body)
		}
	}
}
