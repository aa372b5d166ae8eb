package client

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"deputy.example/deputy/client/delegation"
)

// headerNonce is the header that carries a server's nonces (RFC 9449 §8.1, §9).
const headerNonce = "DPoP-Nonce"

// Handler admits to next each request with a token that v accepts and that allows every one of the
// scopes. next reads it with FromContext. Every other request is answered as RFC 6750 §3 and RFC
// 9449 §7.1 require, or with 503 while the issuer's keys are not available.
//
// A token that is bound to a key comes with scheme DPoP and a proof for the address in
// VerifierConfig.URLs. A token that is bound to a certificate comes with scheme Bearer over a TLS
// connection that was opened with that certificate and that ends in this server.
//
// The token must be in the only Authorization header. A request with a token in the query is
// refused even with a valid header: addresses are written to logs.
func (v *Verifier) Handler(next http.Handler, scopes ...string) http.Handler {
	// Malformed scopes stay in the set. No token holds them, so the request is refused.
	required := delegation.Scopes(scopes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, err := v.admitRequest(r, required)
		if err != nil {
			accessError(err).write(w, v.audience, len(v.urls) > 0)
			return
		}
		if v.requireNonce {
			w.Header().Set(headerNonce, v.nonces.at(v.clock.now()))
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, d)))
	})
}

func (v *Verifier) admitRequest(r *http.Request, required delegation.Scopes) (*Delegation, error) {
	if r.URL.Query().Has("access_token") {
		return nil, denied(AccessInvalidRequest, "a token in the query is not accepted")
	}
	p, err := presentation(r.Header.Values("Authorization"))
	if err != nil {
		return nil, err
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		p.Certificate = r.TLS.PeerCertificates[0]
	}
	if p.Scheme == schemeDPoP {
		p.Proofs, p.Method, p.URI = r.Header.Values(metadataProof), r.Method, v.httpURI(r.Host, sentPath(r))
	}
	d, err := v.VerifyPresented(r.Context(), p)
	if err != nil {
		return nil, err
	}
	if err := d.require(required); err != nil {
		return nil, accessError(err).as(p.Scheme)
	}
	return d, nil
}

// sentPath returns the path as it was sent: a handler before this one may have shortened it.
func sentPath(r *http.Request) string {
	if sent, err := url.ParseRequestURI(r.RequestURI); err == nil {
		return sent.EscapedPath()
	}
	return r.URL.EscapedPath()
}

// presentation reads the only permitted Authorization header (RFC 6750 §2.1, RFC 9449 §7.1). The
// case of the scheme does not matter (RFC 9110 §11.1). delegation.Parse judges the text after the
// one space.
func presentation(headers []string) (Presentation, error) {
	switch len(headers) {
	case 0:
		return Presentation{}, denied(AccessNoToken, "a token is needed")
	case 1:
	default:
		return Presentation{}, denied(AccessInvalidRequest, "more than one Authorization header")
	}
	p := Presentation{Scheme: schemeBearer}
	scheme, token, _ := strings.Cut(headers[0], " ")
	switch {
	case strings.EqualFold(scheme, schemeBearer):
	case strings.EqualFold(scheme, schemeDPoP):
		p.Scheme = schemeDPoP
	default:
		return Presentation{}, denied(AccessNoToken, "a token is needed")
	}
	if p.Token = token; token == "" {
		return Presentation{}, denied(AccessInvalidRequest, "the Authorization header holds no token").as(p.Scheme)
	}
	return p, nil
}
