package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// PresenterConfig configures which token is sent to which tool.
type PresenterConfig struct {
	// Origin of the tool: "https://calendar.example", with a port where it is not the default of
	// the scheme. The token is sent to no other origin, whatever the request or a redirect names.
	// Plain http is for this machine only. Required.
	Origin string
	// Token returns the token, and is called for every request: TokenSource.Token, for instance.
	// Required.
	Token func(context.Context) (*Token, error)
	// ProofKey is the key that the token is bound to. Default: none, and a token that is bound to a
	// key is not sent.
	ProofKey *dpop.Key
	// Transport carries HTTP requests. For a token that is bound to a certificate, it must present
	// that certificate. Default: http.DefaultTransport.
	Transport http.RoundTripper
	// Now is the clock for the dates of proofs. Default: time.Now.
	Now func() time.Time
	// Rand is the source of random bytes for the jti of each proof. Default: crypto/rand.Reader.
	Rand io.Reader
}

// Presenter presents a token to one tool, over HTTP as an http.RoundTripper and over gRPC by its
// DialOptions. It sends the token as Bearer or, if the token is bound to a key, with scheme DPoP
// and a new proof for each request. A request that lacked only the tool's nonce is repeated at
// once, and once (RFC 9449 §9). It is safe for concurrent use.
type Presenter struct {
	origin    *url.URL
	token     func(context.Context) (*Token, error)
	prover    *prover
	transport http.RoundTripper
}

// NewPresenter checks the configuration and makes a Presenter.
func NewPresenter(cfg PresenterConfig) (*Presenter, error) {
	u, err := url.Parse(cfg.Origin)
	if err == nil {
		_, err = parsePublicURL(cfg.Origin)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("deputy presenter: Origin: %w", err)
	case u.Path != "" && u.Path != "/":
		return nil, errors.New("deputy presenter: Origin has a path: a token is for a whole origin")
	case cfg.Token == nil:
		return nil, errors.New("deputy presenter: Token is missing")
	}
	p := &Presenter{
		origin: u, token: cfg.Token, transport: cfg.Transport,
		prover: &prover{key: cfg.ProofKey, now: cfg.Now, rand: cfg.Rand},
	}
	if p.transport == nil {
		p.transport = http.DefaultTransport
	}
	if p.prover.now == nil {
		p.prover.now = time.Now
	}
	if p.prover.rand == nil {
		p.prover.rand = rand.Reader
	}
	return p, nil
}

// present gets the token and the scheme to send it with.
func (p *Presenter) present(ctx context.Context) (scheme, token string, err error) {
	t, err := p.token(ctx)
	switch {
	case err != nil:
		return "", "", err
	case t == nil || t.AccessToken.IsZero():
		return "", "", errors.New("there is no token to present")
	}
	token = t.AccessToken.Reveal()
	if scheme, err = p.prover.scheme(token); err != nil {
		return "", "", fmt.Errorf("the token cannot be presented: %w", err)
	}
	if t.TokenType == schemeDPoP && scheme != schemeDPoP {
		return "", "", errors.New("the token cannot be presented: it is of type DPoP and bound to no key")
	}
	return scheme, token, nil
}

// RoundTrip implements http.RoundTripper. A request to another origin is not sent, so a redirect to
// one ends with an error. The request must have no Authorization and no DPoP header of its own. A
// request with a body is repeated for a nonce only if it has GetBody, as the requests of
// http.NewRequest do for bodies in memory.
func (p *Presenter) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.check(r); err != nil {
		closeBody(r)
		return nil, err
	}
	response, scheme, err := p.send(r)
	if err != nil {
		return nil, err
	}
	nonce := p.learn(response, scheme)
	if nonce == "" {
		return response, nil
	}
	again := r.Clone(context.WithValue(r.Context(), nonceKey{}, nonce))
	if r.Body != nil && r.Body != http.NoBody {
		if r.GetBody == nil {
			return response, nil
		}
		if again.Body, err = r.GetBody(); err != nil {
			return response, nil
		}
	}
	const most = 64 << 10 // a refusal is short: reading it keeps the connection in use
	_, _ = io.CopyN(io.Discard, response.Body, most)
	response.Body.Close()
	if response, scheme, err = p.send(again); err == nil {
		p.learn(response, scheme)
	}
	return response, err
}

func (p *Presenter) check(r *http.Request) error {
	ours := canonicalHost(p.origin.Scheme, p.origin.Host)
	switch {
	case r.URL == nil || r.URL.Scheme != p.origin.Scheme || canonicalHost(r.URL.Scheme, r.URL.Host) != ours,
		r.Host != "" && canonicalHost(r.URL.Scheme, r.Host) != ours:
		return fmt.Errorf("deputy presenter: the request is for another origin than %s, which its token is for", p.origin)
	case r.Header.Get("Authorization") != "" || r.Header.Get(metadataProof) != "":
		return errors.New("deputy presenter: the request has an Authorization or DPoP header already")
	}
	return nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// send makes one attempt. It closes the body, as every RoundTripper does.
func (p *Presenter) send(r *http.Request) (_ *http.Response, scheme string, err error) {
	ctx := r.Context()
	r = r.Clone(ctx) // RoundTrip must not change the request
	scheme, token, err := p.present(ctx)
	if err == nil && scheme == schemeDPoP {
		var proof string
		address := url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path, RawPath: r.URL.RawPath}
		if proof, err = p.prover.prove(ctx, r.Method, address.String(), scheme, token); err == nil {
			r.Header.Set(metadataProof, proof)
		}
	}
	if err != nil {
		closeBody(r)
		return nil, "", fmt.Errorf("deputy presenter: %w", err)
	}
	r.Header.Set("Authorization", scheme+" "+token)
	response, err := p.transport.RoundTrip(r)
	return response, scheme, err
}

// learn keeps the nonce of a response, and returns it if the response requires it.
func (p *Presenter) learn(response *http.Response, scheme string) (nonce string) {
	given := response.Header.Values(headerNonce)
	if scheme != schemeDPoP || len(given) != 1 || !p.prover.remember(given[0]) || response.StatusCode != http.StatusUnauthorized {
		return ""
	}
	asks := func(challenge string) bool { return strings.Contains(challenge, string(AccessUseNonce)) }
	if !slices.ContainsFunc(response.Header.Values("WWW-Authenticate"), asks) {
		return ""
	}
	return given[0]
}

// DialOptions make a gRPC connection to the tool present the token with each call. The connection's
// authority must be that of Origin. Its transport must be TLS, or end on this machine with the
// credentials of google.golang.org/grpc/credentials/local.
//
// Calls and streams of one request are repeated for a nonce. A stream on which the caller sends too
// ends with delegation.ProofNonceNeeded instead, and the next one has the nonce.
func (p *Presenter) DialOptions() []grpc.DialOption {
	return append(p.prover.interceptors(), grpc.WithPerRPCCredentials(toolCredentials{p}))
}

// toolCredentials present a token with each call.
type toolCredentials struct{ *Presenter }

// RequireTransportSecurity implements credentials.PerRPCCredentials. GetRequestMetadata decides
// instead, by the connection.
func (toolCredentials) RequireTransportSecurity() bool { return false }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c toolCredentials) GetRequestMetadata(ctx context.Context, service ...string) (map[string]string, error) {
	refuse := func(text string) (map[string]string, error) {
		return nil, delegation.Refuse(delegation.ClientUnauthenticated, "", "the token is not sent: %s", text)
	}
	uri, err := callURI(ctx, service)
	if err != nil {
		return refuse(err.Error())
	}
	u, err := url.Parse(uri)
	if err != nil || canonicalHost("https", u.Host) != canonicalHost("https", c.origin.Host) {
		return refuse("the connection is to another authority than that of Origin")
	}
	info, _ := credentials.RequestInfoFromContext(ctx)
	if !private(info.AuthInfo) {
		return refuse("the connection is neither TLS nor local")
	}
	scheme, token, err := c.present(ctx)
	var refusal *delegation.Error
	switch {
	case errors.As(err, &refusal):
		return nil, refusal
	case err != nil:
		return refuse(err.Error())
	}
	md := map[string]string{metadataAuthorization: scheme + " " + token}
	if scheme == schemeDPoP {
		if md[metadataProof], err = c.prover.prove(ctx, http.MethodPost, uri, scheme, token); err != nil {
			return refuse(err.Error())
		}
	}
	return md, nil
}

// private reports whether a connection protects its content from readers on the network path. A
// connection that does not report its security level is not private.
func private(info credentials.AuthInfo) bool {
	if info == nil {
		return false
	}
	secured, says := info.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	})
	return info.AuthType() == "local" || says && secured.GetCommonAuthInfo().SecurityLevel == credentials.PrivacyAndIntegrity
}
