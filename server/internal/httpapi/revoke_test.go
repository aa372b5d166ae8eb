package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// TestRevocationAnswers: the answer is 200 without a body where the token is revoked, and where
// there was nothing that the caller could have revoked (RFC 7009 §2.2).
func TestRevocationAnswers(t *testing.T) {
	form := url.Values{"token": {"presented-token"}, "token_type_hint": {"refresh_token"}}
	slow := delegation.Unavailable("ledger", errors.New("cause-secret"))
	busy := delegation.Refuse(delegation.RateLimited, "", "slower")
	busy.RetryAfter = 1500 * time.Millisecond
	for _, c := range []struct {
		name       string
		done       exchange.Revoked
		err        error
		status     int
		reason     string
		retryAfter string
	}{
		{"revoked", exchange.Revoked{Revocation: &delegation.Revocation{Seq: 58}}, nil, http.StatusOK, "", ""},
		{"unknown, foreign or somebody else's", exchange.Revoked{}, delegation.Refuse(delegation.NotFound, "token", "nothing there"), http.StatusOK, "", ""},
		{"not durable", exchange.Revoked{}, slow, http.StatusServiceUnavailable, "unavailable", "1"},
		{"too often", exchange.Revoked{}, busy, http.StatusTooManyRequests, "rate_limited", "2"},
		{"a stranger", exchange.Revoked{}, delegation.Refuse(delegation.ClientUnauthenticated, "", "who?"), http.StatusUnauthorized, "client_unauthenticated", ""},
		{"an error of no kind", exchange.Revoked{}, errors.New("cause-secret"), http.StatusInternalServerError, "internal", ""},
		{"a success that is not recorded", exchange.Revoked{}, nil, http.StatusInternalServerError, "internal", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine := granting(t)
			engine.revoke = func(context.Context, exchange.RevokeCall) (exchange.Revoked, error) { return c.done, c.err }
			w, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/t/acme/oauth2/revoke", form, "Authorization", "Bearer assertion"))
			if w.Code != c.status || w.Header().Get("Retry-After") != c.retryAfter || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%d %v", w.Code, w.Header())
			}
			if c.reason == "" && w.Body.Len() > 0 || c.reason != "" && got["reason"] != c.reason {
				t.Errorf("body %q", w.Body)
			}
			want := exchange.RevokeCall{Tenant: "acme", Credentials: exchange.Credentials{Bearer: "assertion"}, Token: "presented-token", Peer: engine.revoked[0].Peer}
			if !reflect.DeepEqual(engine.revoked, []exchange.RevokeCall{want}) || want.Peer == "" {
				t.Errorf("asked for %+v", engine.revoked)
			}
		})
	}
}

// TestRevocationRefuses: a request that HTTP refuses by itself never reaches the engine.
func TestRevocationRefuses(t *testing.T) {
	form := url.Values{"token": {"t"}}
	for _, c := range []struct {
		name    string
		form    url.Values
		headers []string
		query   string
		reason  string
	}{
		{"no token", url.Values{}, nil, "", "parameter_missing"},
		{"an empty token", url.Values{"token": {""}}, nil, "", "parameter_missing"},
		{"two tokens", url.Values{"token": {"t", "u"}}, nil, "", "parameter_repeated"},
		{"two ways at once", url.Values{"token": {"t"}, "client_assertion": {"a"}}, []string{"Authorization", "Bearer x"}, "", "parameter_conflict"},
		{"client_secret_basic", form, []string{"Authorization", "Basic eDp5"}, "", "client_unauthenticated"},
		{"client_secret_post", url.Values{"token": {"t"}, "client_secret": {"s"}}, nil, "", "parameter_unsupported"},
		{"two proofs", form, []string{"DPoP", "x", "DPoP", "x"}, "", "parameter_repeated"},
		{"a query", form, nil, "?token=t", "parameter_invalid"},
	} {
		engine := granting(t)
		_, got := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/revoke"+c.query, c.form, c.headers...))
		if got["reason"] != c.reason || len(engine.revoked) > 0 {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	engine := granting(t)
	w, _ := answerTo(t, newHandler(t, Config{Engine: engine}), post("/oauth2/revoke", url.Values{"token": {"t"}, "client_assertion": {"a"}, "client_assertion_type": {"b"}, "client_id": {"c"}}))
	if w.Code != http.StatusOK || !reflect.DeepEqual(engine.revoked[0].Credentials, exchange.Credentials{Assertion: "a", AssertionType: "b", ClientID: "c"}) {
		t.Errorf("the same with nothing wrong: %d %+v", w.Code, engine.revoked)
	}
}
