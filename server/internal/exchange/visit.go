package exchange

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/peers"
)

// ReasonCanceled is the reason, in logs and metrics, of a call whose caller hung up, or whose
// caller's deadline passed, before the answer. It is no reason of an error on the wire.
const ReasonCanceled = "canceled"

var errOvertime = errors.New("the server's own deadline passed")

type visitKey struct{}

// visit is the state of one call for the access log of its endpoint.
type visit struct {
	call          context.Context // contexts of the engine have earlier deadlines
	authenticated atomic.Bool
}

// Visit returns the context of one call at an endpoint. It ends after timeout; 0 means no timeout.
// [Left] and [Authenticated] read it from this context and from derived ones.
func Visit(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	v := new(visit)
	ctx = context.WithValue(ctx, visitKey{}, v)
	var cancel context.CancelFunc
	if timeout > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errOvertime)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	v.call = ctx
	return ctx, cancel
}

// Left reports whether the caller of a visit hung up, lost its connection or let its own deadline
// pass. It is false for a context without a visit.
func Left(ctx context.Context) bool {
	v, is := ctx.Value(visitKey{}).(*visit)
	if !is {
		return false
	}
	cause := context.Cause(v.call)
	return cause != nil && !errors.Is(cause, errOvertime)
}

// Authenticated reports whether the engine authenticated the caller of a visit. It is false for a
// context without a visit.
func Authenticated(ctx context.Context) bool {
	v, is := ctx.Value(visitKey{}).(*visit)
	return is && v.authenticated.Load()
}

// noteAuthenticated records that the caller of a visit is authenticated: a workload, or a person
// with a session.
func noteAuthenticated(ctx context.Context) {
	peers.Known(ctx)
	if v, is := ctx.Value(visitKey{}).(*visit); is {
		v.authenticated.Store(true)
	}
}

// Failed returns the reason of a failed call for logs and metrics, and whether it is a fault of the
// server or of a dependency. When the caller has left, the work of the call is canceled. A
// dependency that does not respond is then no fault, and neither is an internal error that the end
// of a context caused. Any other internal error is a fault.
func Failed(ctx context.Context, refusal *delegation.Error) (reason string, fault bool) {
	fault = refusal.Reason == delegation.Internal || refusal.Reason == delegation.DependencyDown
	if fault && Left(ctx) && (refusal.Reason == delegation.DependencyDown || interrupted(refusal)) {
		return ReasonCanceled, false
	}
	return string(refusal.Reason), fault
}

func interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
