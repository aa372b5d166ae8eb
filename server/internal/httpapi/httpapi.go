// Package httpapi is the HTTP front: OAuth 2.0 Token Exchange (RFC 8693), introspection (RFC 7662),
// revocation (RFC 7009), status lists, server metadata (RFC 8414) and keys, for every tenant below
// its issuer's path. A handler of its own serves health, readiness and metrics.
//
// The package owns what is specific to HTTP: methods, media types, the strict reading of forms,
// status codes and headers. It turns a form into an [exchange.Call] and an outcome into JSON. It
// must not know how a caller is authenticated, what a token permits or where anything is stored. It
// must not decide what the gRPC front would have to decide again.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/peers"
)

// Engine is what this front needs of exchange.Engine. It is an interface so that the tests of HTTP
// and the conformance tests can script the outcomes.
type Engine interface {
	Exchange(context.Context, exchange.Call) ([]exchange.Outcome, error)
	Introspect(context.Context, exchange.Inquiry) (exchange.Introspection, error)
	Revoke(context.Context, exchange.RevokeCall) (exchange.Revoked, error)
	StatusList(ctx context.Context, tenant string, number uint64) (exchange.StatusList, error)
}

// Tenant is what this front publishes about one tenant.
type Tenant struct {
	Name string
	// Issuer is an absolute http or https URL without query and fragment. Its path is where the
	// tenant's endpoints are: none for https://deputy.example, /t/acme for
	// https://deputy.example/t/acme.
	Issuer string
	// JWKS returns the current public keys as a JSON Web Key Set.
	JWKS func() []byte
	// AssertionAlgorithms are the JWS algorithms of client assertions that the tenant accepts.
	AssertionAlgorithms []string
	// CertificateMethods are the ways in which a client certificate authenticates (RFC 8705 §2), as
	// values of token_endpoint_auth_methods_supported.
	CertificateMethods []string
	// CertificateBound is true where tokens can be bound to client certificates (RFC 8705 §3.3).
	CertificateBound bool
	// DetailTypes are the types of authorization_details that the tenant supports (RFC 9396 §10).
	DetailTypes []string
	// AcceptJSONSTS makes the token endpoint accept a flat JSON object of RFC 8693's parameters,
	// which grpc-go's STS credential sends.
	AcceptJSONSTS bool
}

// Config is what New needs.
type Config struct {
	Engine  Engine
	Tenants []Tenant
	// Timeout bounds one request in the handler. Default: 10 s.
	Timeout        time.Duration
	Logger         *slog.Logger         // nil: discard
	TracerProvider trace.TracerProvider // nil: no traces
	Now            func() time.Time     // nil: time.Now
}

// Bounds of a request. A token is at most 8 KiB, so the body has room for a subject token, an actor
// token and an assertion, and for long details.
const (
	maxBodyBytes   = 64 << 10
	maxParameters  = 128
	maxHeaderBytes = 16 << 10
	maxStreams     = 100 // concurrent requests on one HTTP/2 connection
)

// New returns the handler for all tenants. It refuses tenants whose addresses are not distinct.
func New(c Config) (http.Handler, error) {
	if c.Engine == nil {
		return nil, errors.New("httpapi: an engine is required")
	}
	h := &handler{
		endpoints: make(map[string]*endpoint),
		timeout:   c.Timeout,
		logger:    c.Logger,
		now:       c.Now,
	}
	if h.timeout <= 0 {
		h.timeout = 10 * time.Second
	}
	if h.logger == nil {
		h.logger = slog.New(slog.DiscardHandler)
	}
	if h.now == nil {
		h.now = time.Now
	}
	tracers := c.TracerProvider
	if tracers == nil {
		tracers = noop.NewTracerProvider()
	}
	h.sampled = peers.NewSampler(h.now)
	h.tracer = tracers.Tracer("deputy.example/deputy/server/internal/httpapi")
	for _, t := range c.Tenants {
		if err := h.addTenant(c.Engine, t); err != nil {
			return nil, fmt.Errorf("httpapi: tenant %q: %w", t.Name, err)
		}
	}
	return h, nil
}

// NewServer returns a server for the handler. Every phase has a deadline and every size a bound.
// proxies are addresses of proxies that append their clients to X-Forwarded-For. The server serves
// nothing before its Serve is called.
func NewServer(h http.Handler, proxies []netip.Prefix, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := newFront(h, proxies, logger)
	s := &http.Server{
		Handler:     f,
		ConnContext: connect,
		ErrorLog:    f.errorLog(),

		DisableGeneralOptionsHandler: true, // OPTIONS * is an unknown address like any other

		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{ // where TLS negotiates it
			MaxConcurrentStreams:          maxStreams,
			MaxDecoderHeaderTableSize:     4 << 10,
			MaxReadFrameSize:              16 << 10,
			MaxReceiveBufferPerStream:     maxBodyBytes,
			MaxReceiveBufferPerConnection: 4 * maxBodyBytes,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              20 * time.Second,
		},
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true) // never without TLS
	return s
}

// addTenant registers the tenant's endpoints by their exact paths. There is no pattern matching, no
// cleaning and no redirect. A path matches an endpoint byte for byte, or not at all.
func (h *handler) addTenant(e Engine, t Tenant) error {
	base, err := basePath(t.Issuer)
	if err != nil {
		return err
	}
	if t.Name == "" || t.JWKS == nil {
		return errors.New("a name and a key set are required")
	}
	tenant := &t
	document, err := metadataDocument(tenant)
	if err != nil {
		return err
	}
	for path, ep := range map[string]*endpoint{
		base + pathToken:      tokenEndpoint(e, tenant),
		base + pathIntrospect: introspectEndpoint(e, tenant),
		base + pathRevoke:     revokeEndpoint(e, tenant),
		base + pathJWKS:       jwksEndpoint(tenant),
		pathMetadata + base:   metadataEndpoint(document),

		base + exchange.PathStatusLists + anyNumber: statusListEndpoint(e, tenant),
	} {
		if other, taken := h.endpoints[path]; taken {
			return fmt.Errorf("the path %s is tenant %q's already: issuers must differ in their paths", path, other.tenant.Name)
		}
		ep.route, ep.tenant = path, tenant
		h.endpoints[path] = ep
	}
	return nil
}

// basePath returns the issuer's path without its trailing slash (RFC 8414 §3.1).
func basePath(issuer string) (string, error) {
	u, err := url.Parse(issuer)
	switch {
	case err != nil:
		return "", errors.New("the issuer is not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil:
		return "", fmt.Errorf("the issuer %q is not an absolute http or https URL without user information", issuer)
	case strings.ContainsAny(issuer, "?#"):
		return "", fmt.Errorf("the issuer %q has a query or a fragment (RFC 8414 §2)", issuer)
	}
	return strings.TrimSuffix(u.EscapedPath(), "/"), nil
}
