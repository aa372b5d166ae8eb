package exchange

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/policy"
	"deputy.example/deputy/server/internal/token"
)

// walk is the state of one Call in the seven steps.
type walk struct {
	*Engine
	arrival  // zero until step 1 has determined it
	call     Call
	parent   parent
	now      time.Time // one time for the whole call
	children []*child
}

// child is one derived token during the walk. Its first error ends it; later steps skip it.
type child struct {
	Child
	index    int
	named    *token.Actor // the verified actor token, if there is one
	actor    actor
	wish     wish
	claims   delegation.Claims
	decision policy.Decision
	payload  []byte // the claims as the ledger stores them
	retried  bool   // an earlier call with the same idempotency key made the grant
	outcome  Outcome
	kept     *delegation.Error // for the ledger; the outcome's error discloses less
}

func (c *child) alive() bool { return c.outcome.Err == nil }

func (c *child) fail(err error) { c.outcome.Err = delegation.AsError(err) }

// Exchange takes one call through the seven steps. A returned error is a *delegation.Error and
// means that the whole call failed before its caller was known or admitted. Otherwise there is one
// Outcome for each child, in order. An Outcome holds a token only if its ledger entry is durable.
func (e *Engine) Exchange(ctx context.Context, call Call) ([]Outcome, error) {
	ctx, cancel := e.within(ctx)
	defer cancel()
	w := &walk{Engine: e, call: call, now: e.config.Now()}
	for i, c := range call.Children {
		w.children = append(w.children, &child{Child: c, index: i})
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"front", w.front},
		{"admit", w.admit},
	} {
		if err := w.step(ctx, step.name, step.do); err != nil {
			return nil, w.turnAway(ctx, err)
		}
	}
	// From here on the caller is known, and each refusal is recorded.
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"verify", w.verify},
		{"plan", w.plan},
		{"authorize", w.authorize},
	} {
		if err := w.step(ctx, step.name, step.do); err != nil {
			w.failAll(err)
		}
	}
	_ = w.step(ctx, "record", w.record)
	_ = w.step(ctx, "mint", w.mint)
	return w.outcomes(ctx), nil
}

// step runs one step in a span and a timer of its own. A panic in the step becomes a refusal.
func (w *walk) step(ctx context.Context, name string, do func(context.Context) error) (err error) {
	ctx, span := w.tracer.Start(ctx, "exchange."+name)
	began := time.Now()
	defer func() {
		if caught := recover(); caught != nil {
			err = delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued")
			_ = panics.Caught(ctx, w.config.Logger, caught, "step", name)
			w.failAll(err)
		}
		if err != nil {
			span.SetStatus(codes.Error, string(delegation.AsError(err).Reason))
		}
		w.metrics.step(name, began)
		span.End()
	}()
	return do(ctx)
}

func (w *walk) failAll(err error) {
	for _, c := range w.children {
		if c.alive() {
			c.outcome.Grant = nil
			c.fail(err)
		}
	}
}

// refuseAll gives each child this refusal, in place of its grant or error.
func (w *walk) refuseAll(err error) {
	for _, c := range w.children {
		c.outcome.Grant = nil
		c.fail(err)
	}
}

// turnAway ends a call whose caller is not known or not admitted. The refusal is counted, and
// sampled in the log. An unauthenticated caller writes nothing into a tenant's ledger.
func (e *Engine) turnAway(ctx context.Context, err error) *delegation.Error {
	refusal := delegation.AsError(err)
	reason, _ := Failed(ctx, refusal)
	e.metrics.strange.WithLabelValues(reason).Inc()
	e.strange.Do(func() {
		e.config.Logger.WarnContext(ctx, "turned away", "reason", reason, "field", refusal.Field, "cause", refusal.Unwrap())
	})
	return refusal
}

// outcomes returns the outcomes. Each child has exactly one of a grant and an error.
func (w *walk) outcomes(ctx context.Context) []Outcome {
	all := make([]Outcome, len(w.children))
	for i, c := range w.children {
		if c.alive() && c.outcome.Grant == nil {
			c.fail(delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued"))
		}
		reason := "granted"
		if !c.alive() {
			c.outcome.Grant = nil
			level, fault := slog.LevelInfo, false
			if reason, fault = Failed(ctx, c.outcome.Err); fault {
				level = slog.LevelError
			}
			w.config.Logger.Log(ctx, level, "refused", "tenant", w.tenant.Name, "caller", w.caller.Principal,
				"reason", reason, "field", c.outcome.Err.Field, "cause", c.outcome.Err.Unwrap())
		}
		w.metrics.outcomes.WithLabelValues(w.tenant.Name, reason).Inc()
		all[i] = c.outcome
	}
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("deputy.tenant", w.tenant.Name))
	return all
}
