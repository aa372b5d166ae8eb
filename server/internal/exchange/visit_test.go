package exchange

import (
	"context"
	"errors"
	"testing"
	"time"

	"deputy.example/deputy/client/delegation"
)

// TestVisit: a caller has left when it hung up or its own deadline passed, and not when a deadline of
// the server or of the engine passed.
func TestVisit(t *testing.T) {
	hungUp, hangUp := context.WithCancel(t.Context())
	hangUp()
	late, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		timeout time.Duration
		left    bool
	}{
		"there":                 {t.Context(), time.Hour, false},
		"there, in a stream":    {t.Context(), 0, false},
		"hung up":               {hungUp, time.Hour, true},
		"hung up, in a stream":  {hungUp, 0, true},
		"its deadline passed":   {late, time.Hour, true},
		"the server's deadline": {t.Context(), 1, false},
	} {
		ctx, end := Visit(c.ctx, c.timeout)
		if c.timeout == 1 {
			<-ctx.Done()
		}
		inner, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
		for _, ctx := range []context.Context{ctx, inner} {
			if Left(ctx) != c.left {
				t.Errorf("%s: left is %t", name, !c.left)
			}
			for reason, want := range map[delegation.Reason]string{
				delegation.DependencyDown: "unavailable", delegation.Internal: "internal", delegation.TokenRevoked: "token_revoked",
			} {
				fault := want != "token_revoked"
				if c.left && reason == delegation.DependencyDown {
					want, fault = ReasonCanceled, false
				}
				if got, is := Failed(ctx, delegation.Refuse(reason, "", "x")); got != want || is != fault {
					t.Errorf("%s: %s is %s, a fault: %t", name, reason, got, is)
				}
			}
		}
		for _, cause := range []error{context.Canceled, context.DeadlineExceeded} {
			if reason, fault := Failed(ctx, delegation.AsError(cause)); (reason == ReasonCanceled) != c.left || fault == c.left {
				t.Errorf("%s: %v is %s, a fault: %t", name, cause, reason, fault)
			}
		}
		cancel()
		end()
	}
	if Left(hungUp) || Authenticated(hungUp) {
		t.Error("what is no visit has left or is known")
	}
	if reason, fault := Failed(hungUp, delegation.AsError(errors.New("x"))); reason != "internal" || !fault {
		t.Error("what is no visit is excused")
	}
	ctx, end := Visit(t.Context(), 0)
	defer end()
	if Authenticated(ctx) {
		t.Error("known before it was")
	}
	if noteAuthenticated(ctx); !Authenticated(ctx) {
		t.Error("not known")
	}
}
