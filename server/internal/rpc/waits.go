package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/tap"
)

// tap sees every call when its headers have come, and ends it where its first message does not follow
// soon: no interceptor runs before that, so nobody has been authenticated and no deadline is set.
func (w *waits) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(w.message, func() { cancel(errSilent) })
	ended := context.AfterFunc(ctx, func() { timer.Stop() })
	return context.WithValue(ctx, waiting{}, func() { timer.Stop(); ended() }), nil
}

// waiting is where the context of a call holds what ends the waiting for its first message.
type waiting struct{}

var errSilent = errors.New("the first message did not come in time")

// messageCame says that the first message of a call is there.
func messageCame(ctx context.Context) {
	if came, is := ctx.Value(waiting{}).(func()); is {
		came()
	}
}
