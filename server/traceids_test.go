package server

import (
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// TestTraceIDs: a request continues its caller's trace or begins its own, and everything that is
// done within it belongs to that trace.
func TestTraceIDs(t *testing.T) {
	tracer := traceIDs{}.Tracer("")
	const theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	seen := map[trace.TraceID]bool{}
	for _, parent := range []string{"", "", "malformed", theirs} {
		ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": parent})
		ctx, request := tracer.Start(ctx, "request")
		ids := request.SpanContext()
		if seen[ids.TraceID()] || !ids.IsValid() || ids.IsRemote() || ids.IsSampled() || request.IsRecording() {
			t.Errorf("of %q: %+v", parent, ids)
		}
		if seen[ids.TraceID()] = true; parent == theirs && (ids.TraceID().String() != theirs[3:35] || ids.SpanID().String() == theirs[36:52]) {
			t.Errorf("of %q: %+v", parent, ids)
		}
		inner, step := tracer.Start(ctx, "step")
		if !step.SpanContext().Equal(ids) || !trace.SpanContextFromContext(inner).Equal(ids) {
			t.Errorf("a step of %+v is %+v", ids, step.SpanContext())
		}
	}
}
