package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/peers"
)

// handler routes requests, and does for each what no endpoint may omit: the trace, the deadline,
// panics, errors and the log.
type handler struct {
	endpoints map[string]*endpoint // by exact escaped path, see find; never changed after New
	timeout   time.Duration
	logger    *slog.Logger
	tracer    trace.Tracer
	now       func() time.Time
	sampled   *peers.Sampler // lines of unauthenticated callers
}

// endpoint is one address of one tenant. serve writes the answer or returns an error, never both.
type endpoint struct {
	tenant  *Tenant
	route   string
	methods []string
	gates   []gate // passed in order before serve
	serve   func(http.ResponseWriter, *http.Request) error
}

// gate is one check that is specific to HTTP. Gates have names so that tests can remove one and see
// what it refused.
type gate struct {
	name  string
	check func(*http.Request) error
}

// ServeHTTP answers one request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.now()
	ep, found := h.find(r.URL.EscapedPath())
	if !found {
		ep = &endpoint{route: "unknown", tenant: &Tenant{}, serve: notThere}
	}
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := h.tracer.Start(ctx, "HTTP "+ep.route, trace.WithSpanKind(trace.SpanKindServer))
	defer span.End()
	ctx, cancel := exchange.Visit(ctx, h.timeout)
	defer cancel()

	out := &answer{ResponseWriter: w, status: http.StatusOK}
	out.Header().Set("X-Content-Type-Options", "nosniff")
	out.Header().Set("Cache-Control", "no-store")
	err := h.dispatch(ep, out, r.WithContext(ctx))
	if err != nil && !out.wrote {
		writeError(out, r, ep, err)
	}
	h.record(ctx, span, r, ep, out.status, err, h.now().Sub(began))
}

// dispatch runs the gates and the endpoint. A panic becomes an internal error without details.
func (h *handler) dispatch(ep *endpoint, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			_ = panics.Caught(r.Context(), h.logger, p, "route", ep.route)
			err = delegation.Refuse(delegation.Internal, "", "internal error")
		}
	}()
	if ep.methods != nil && !slices.Contains(ep.methods, r.Method) {
		return delegation.Refuse(delegation.MethodNotAllowed, "", "use %s", strings.Join(ep.methods, " or "))
	}
	for _, g := range ep.gates {
		if err := g.check(r); err != nil {
			return err
		}
	}
	return ep.serve(w, r)
}

func notThere(http.ResponseWriter, *http.Request) error {
	return delegation.Refuse(delegation.NotFound, "", "there is nothing at this address")
}

// record writes the access log and closes the span. Neither holds the query, the headers or the
// body.
func (h *handler) record(ctx context.Context, span trace.Span, r *http.Request, ep *endpoint, status int, err error, took time.Duration) {
	method := knownMethod(r.Method)
	span.SetAttributes(
		attribute.String("http.request.method", method),
		attribute.String("http.route", ep.route),
		attribute.Int("http.response.status_code", status))
	level, reason := slog.LevelInfo, ""
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", ep.route), slog.String("tenant", ep.tenant.Name),
		slog.Int("status", status), slog.Duration("took", took),
	}
	if id := span.SpanContext().TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace_id", id.String()))
	}
	if refusal := delegation.AsError(err); refusal != nil {
		reason, _ = exchange.Failed(ctx, refusal)
		attrs = append(attrs, slog.String("reason", reason))
		if reason == string(delegation.Internal) {
			level = slog.LevelError
			span.SetStatus(otelcodes.Error, reason)
			if cause := errors.Unwrap(refusal); cause != nil {
				attrs = append(attrs, slog.String("cause", cause.Error()))
			}
		}
	}
	if level < slog.LevelError && !exchange.Authenticated(ctx) {
		h.sampled.Log(ctx, h.logger, level, "http request", attrs...)
		return
	}
	h.logger.LogAttrs(ctx, level, "http request", attrs...)
}

// knownMethod limits the methods in logs and traces to a closed set, because an unauthenticated
// peer can send any text.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// answer records the status of a response, and whether any of it was written.
type answer struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (a *answer) WriteHeader(status int) {
	if !a.wrote {
		a.status, a.wrote = status, true
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.wrote = true
	return a.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
