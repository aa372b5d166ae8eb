// Package console is the front for people. Auditors and responders read what the ledger recorded,
// see what an agent can do now, and contain it. The server makes the HTML. Scripts add comfort
// only.
//
// The package owns the pages, browser sessions, the sign-in with OpenID Connect and the headers
// that protect a session in a browser. It does not decide who may see or do what. Each page calls
// the engine as the person who is signed in, and shows the answer.
package console

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/peers"
)

// Path is the path of a tenant's console, below its issuer's path.
const Path = "/console"

// Tenant is one tenant's console.
type Tenant struct {
	Name string
	// Issuer is the tenant's address. The console's address is below it.
	Issuer string
	// Provider is the issuer of the OpenID provider that signs people in: one of the tenant's
	// trusted issuers.
	Provider string
	// ClientID is the console's client id at the provider.
	ClientID string
	// ClientSecret authenticates the console to the provider; "" where PKCE alone does.
	ClientSecret string
	// Scopes are requested from the provider besides openid, where a principal comes from a claim
	// that they give.
	Scopes []string
	// Idle is how long an unused session lives. Life is how long any session lives.
	Idle, Life time.Duration
	// InsecureLoopback permits http:// for a provider on this machine.
	InsecureLoopback bool
}

// Config is what New needs.
type Config struct {
	Engine   Engine
	Sessions Sessions
	Tenants  []Tenant
	// Transport reaches the OpenID providers. Default: the network.
	Transport http.RoundTripper
	// Timeout bounds one page. Default 10 s.
	Timeout        time.Duration
	Logger         *slog.Logger         // nil: discard
	TracerProvider trace.TracerProvider // nil: no traces
	Now            func() time.Time     // nil: time.Now
}

// console serves the consoles of all tenants.
type console struct {
	Config
	routes  map[string]*route // by exact escaped path; never changed after New
	tracer  trace.Tracer
	sampled *peers.Sampler // lines of browsers without a session
}

// route is one address of one tenant's console.
type route struct {
	site     *site
	path     string // as logged
	get      func(*call) error
	post     func(*call) error
	public   bool // needs no session
	fragment bool // a script fetches it and inserts it into a page
}

// New returns the handler for all consoles. It fetches nothing. While a provider is unavailable
// people cannot sign in, and nothing else fails.
func New(c Config) (http.Handler, error) {
	if c.Engine == nil || c.Sessions == nil {
		return nil, errors.New("console: an engine and a store of sessions are required")
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TracerProvider == nil {
		c.TracerProvider = noop.NewTracerProvider()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	h := &console{
		Config: c, routes: make(map[string]*route), sampled: peers.NewSampler(c.Now),
		tracer: c.TracerProvider.Tracer("deputy.example/deputy/server/internal/console"),
	}
	for _, t := range c.Tenants {
		s, err := newSite(t, c)
		if err != nil {
			return nil, fmt.Errorf("console: tenant %q: %w", t.Name, err)
		}
		h.add(s)
	}
	return h, nil
}

// Serves returns a function that reports whether a path belongs to a console of one of the tenants,
// so that a caller that mounts the handler needs no other knowledge of paths.
func Serves(tenants []Tenant) func(*http.Request) bool {
	var bases []string
	for _, t := range tenants {
		bases = append(bases, consolePath(t.Issuer))
	}
	return func(r *http.Request) bool {
		path := r.URL.EscapedPath()
		return slices.ContainsFunc(bases, func(base string) bool {
			return path == base || strings.HasPrefix(path, base+"/")
		})
	}
}

func consolePath(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return Path
	}
	return strings.TrimSuffix(u.EscapedPath(), "/") + Path
}

// add registers a tenant's addresses, which match byte for byte: there is no pattern and no
// cleaning.
func (h *console) add(s *site) {
	for path, r := range map[string]route{
		"":                  {get: h.search},
		"/search.csv":       {get: h.searchCSV},
		"/entry":            {get: h.entry},
		"/entry/receipts":   {get: h.receiptsPart, fragment: true},
		"/chain":            {get: h.chain},
		"/agent":            {get: h.agent},
		"/suspensions":      {get: h.suspensions},
		"/revoke":           {get: h.revoke},
		"/take-back":        {get: h.confirm, post: h.takeBack},
		"/live":             {get: h.live},
		"/live/entries":     {get: h.liveEntries, fragment: true},
		"/ledger":           {get: h.ledger},
		"/sign-in":          {get: h.askSignIn, post: h.beginSignIn, public: true},
		"/sign-in/callback": {get: h.finishSignIn, public: true},
		"/sign-out":         {post: h.signOut},
	} {
		r.site, r.path = s, s.base+path
		h.routes[s.base+path] = &r
	}
	h.routes[s.base+"/"] = h.routes[s.base]
	for _, a := range s.assets {
		h.routes[a.path] = &route{site: s, path: a.path, public: true, get: a.serve}
	}
}

// call is one request.
type call struct {
	*site
	w      *answer
	r      *http.Request
	person *exchange.Person     // nil on public pages
	who    delegation.Principal // "" on public pages
	secret string               // the session's id, "" on public pages
	role   exchange.Role

	fragment bool // the answer is inserted into an existing page
}

// ServeHTTP answers one request.
func (h *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.Now()
	out := &answer{ResponseWriter: w, status: http.StatusOK}
	found, known := h.routes[r.URL.EscapedPath()]
	if !known {
		found = &route{path: "unknown", site: h.siteOf(r), public: true, get: notThere, post: notThere}
	}
	ctx, span := h.tracer.Start(r.Context(), "HTTP "+found.path, trace.WithSpanKind(trace.SpanKindServer))
	defer span.End()
	ctx, cancel := exchange.Visit(ctx, h.Timeout)
	defer cancel()
	c := &call{site: found.site, w: out, r: r.WithContext(ctx), fragment: found.fragment}
	c.setHeaders()
	err := h.dispatch(found, c)
	if err != nil {
		h.fail(c, err)
	}
	h.record(ctx, span, c, found.path, err, h.Now().Sub(began))
}

// siteOf returns the console that an unknown address is below, for the appearance of its answer.
func (h *console) siteOf(r *http.Request) *site {
	var best *site
	for _, known := range h.routes {
		if strings.HasPrefix(r.URL.EscapedPath(), known.site.base) && (best == nil || len(known.site.base) > len(best.base)) {
			best = known.site
		}
	}
	if best == nil { // the address is below no console
		for _, known := range h.routes {
			return known.site
		}
	}
	return best
}

func notThere(*call) error { return errNotThere }

// dispatch checks a request in order: its method, its origin, its session, and whether a page of
// this session made its form.
func (h *console) dispatch(to *route, c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			_ = panics.Caught(c.r.Context(), h.Logger, p, "route", to.path)
			err = delegation.Refuse(delegation.Internal, "", "internal error")
		}
	}()
	serve := to.get
	switch c.r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		serve = to.post
		c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxForm)
		if err := sameOrigin(c.r); err != nil {
			return err
		}
	default:
		serve = nil
	}
	if serve == nil {
		c.w.Header().Set("Allow", to.allowed())
		return delegation.Refuse(delegation.MethodNotAllowed, "", "use %s", to.allowed())
	}
	if to.public {
		return serve(c)
	}
	if err := h.authenticate(c); err != nil {
		return err
	}
	if c.r.Method == http.MethodPost {
		if err := c.checkToken(); err != nil {
			return err
		}
	}
	return serve(c)
}

func (r *route) allowed() string {
	switch {
	case r.post == nil:
		return "GET, HEAD"
	case r.get == nil:
		return "POST"
	}
	return "GET, HEAD, POST"
}

// inquiry returns the start of a question by the person who is signed in.
func (c *call) inquiry() exchange.Inquiry {
	return exchange.Inquiry{
		Tenant: c.Name, Credentials: exchange.Credentials{Person: c.person}, Peer: c.r.RemoteAddr,
	}
}

// record writes the access log and closes the span. Neither holds the query, the headers or the
// body.
func (h *console) record(ctx context.Context, span trace.Span, c *call, path string, err error, took time.Duration) {
	method := c.r.Method
	if !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost}, method) {
		method = "other"
	}
	span.SetAttributes(attribute.String("http.request.method", method), attribute.String("http.route", path),
		attribute.Int("http.response.status_code", c.w.status))
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", path), slog.String("tenant", c.Name),
		slog.Int("status", c.w.status), slog.Duration("took", took),
	}
	if id := span.SpanContext().TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace_id", id.String()))
	}
	if refusal := delegation.AsError(err); refusal != nil {
		reason, _ := exchange.Failed(ctx, refusal)
		attrs = append(attrs, slog.String("reason", reason))
		if cause := errors.Unwrap(refusal); cause != nil {
			attrs = append(attrs, slog.String("cause", cause.Error()))
		}
		if reason == string(delegation.Internal) {
			level = slog.LevelError
			span.SetStatus(otelcodes.Error, reason)
		}
	}
	if level < slog.LevelError && !exchange.Authenticated(ctx) {
		h.sampled.Log(ctx, h.Logger, level, "console request", attrs...)
		return
	}
	h.Logger.LogAttrs(ctx, level, "console request", attrs...)
}

// answer records the status of a response.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
