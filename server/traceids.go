package server

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
)

// traceIDs is the tracer provider for a configuration without a collector. A request gets the trace
// id of its caller or a new one, for the log and the ledger, and nothing is measured.
type traceIDs struct{ embedded.TracerProvider }

// Tracer returns the same tracer for every name.
func (traceIDs) Tracer(string, ...trace.TracerOption) trace.Tracer { return idTracer{} }

type idTracer struct{ embedded.Tracer }

// Start gives a request its ids. A span within the request needs no ids of its own.
func (idTracer) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	within := trace.SpanContextFromContext(ctx)
	if within.IsValid() && !within.IsRemote() {
		return ctx, trace.SpanFromContext(ctx)
	}
	ids := trace.SpanContextConfig{TraceID: within.TraceID(), TraceState: within.TraceState(), TraceFlags: within.TraceFlags().WithSampled(false)}
	for !ids.TraceID.IsValid() { // zero means none
		binary.NativeEndian.PutUint64(ids.TraceID[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(ids.TraceID[8:], rand.Uint64())
	}
	for !ids.SpanID.IsValid() {
		binary.NativeEndian.PutUint64(ids.SpanID[:], rand.Uint64())
	}
	ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(ids))
	return ctx, trace.SpanFromContext(ctx)
}
