package client

import (
	"context"
	"net/http"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// Handler lets through to next what carries a token that v accepts and that allows every one of
// the scopes; next finds it with FromContext. Everything else is answered as RFC 6750 §3 says, or
// with 503 while the issuer's keys cannot be had.
//
// The token must be in one Authorization header. A token in the query is refused even beside a good
// one: addresses end up in logs.
func (v *Verifier) Handler(next http.Handler, scopes ...string) http.Handler {
	// Malformed scopes stay in the set and are in no token: refused.
	required := delegation.Scopes(scopes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, err := v.admitRequest(r, required)
		if err != nil {
			accessError(err).write(w, v.audience)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, d)))
	})
}

func (v *Verifier) admitRequest(r *http.Request, required delegation.Scopes) (*Delegation, error) {
	if r.URL.Query().Has("access_token") {
		return nil, denied(AccessInvalidRequest, "a token in the query is not accepted")
	}
	token, err := bearerToken(r.Header.Values("Authorization"))
	if err != nil {
		return nil, err
	}
	d, err := v.Verify(r.Context(), token)
	if err != nil {
		return nil, err
	}
	return d, d.require(required)
}

// bearerToken reads the only Authorization header there may be (RFC 6750 §2.1). The scheme's case
// does not matter (RFC 9110 §11.1); what follows the one space is for delegation.Parse to judge.
func bearerToken(headers []string) (string, error) {
	switch len(headers) {
	case 0:
		return "", denied(AccessNoToken, "a Bearer token is needed")
	case 1:
	default:
		return "", denied(AccessInvalidRequest, "more than one Authorization header")
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", denied(AccessNoToken, "a Bearer token is needed")
	}
	if token == "" {
		return "", denied(AccessInvalidRequest, "the Authorization header holds no token")
	}
	return token, nil
}
