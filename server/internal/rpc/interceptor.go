package rpc

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
)

// interceptor does for every call what no method may forget: deadline, panic, error, log.
type interceptor struct {
	timeout time.Duration
	logger  *slog.Logger
	now     func() time.Time
}

func (i interceptor) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := i.now()
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	var response any
	err := i.guard(ctx, info.FullMethod, func() (err error) {
		response, err = handle(ctx, request)
		return err
	})
	i.log(ctx, info.FullMethod, err, i.now().Sub(began))
	if err != nil {
		return nil, answer(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	}
	return response, nil
}

// answer is the wire form of an error. The nonce for the next DPoP proof comes as metadata too, as over
// HTTP it comes as a header (RFC 9449 §8).
func answer(err error, trailer func(metadata.MD)) error {
	refusal := delegation.AsError(err)
	if nonce := refusal.Metadata[delegation.MetadataNonce]; nonce != "" {
		trailer(metadata.Pairs("dpop-nonce", nonce))
	}
	return refusal.GRPCStatus().Err()
}

// stream has no deadline: a stream lives as long as its method lets it. The standard services, health
// watches and reflection where it is on, have errors of their own, so those pass as they are.
func (i interceptor) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	began := i.now()
	err := i.guard(stream.Context(), info.FullMethod, func() error { return handle(server, stream) })
	if typed := new(delegation.Error); !strings.HasPrefix(info.FullMethod, ownMethods) && !errors.As(err, &typed) {
		return err
	}
	i.log(stream.Context(), info.FullMethod, err, i.now().Sub(began))
	if err != nil {
		return answer(err, stream.SetTrailer)
	}
	return nil
}

// ownMethods is how the full name of each method of deputy.v1 begins.
const ownMethods = "/deputy.v1."

// guard turns a panic into an internal error that says nothing.
func (i interceptor) guard(ctx context.Context, method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The panic's value may repeat what was being read, so only the stack is logged: it
			// holds no text of the request.
			i.logger.ErrorContext(ctx, "panic", "method", method, "stack", string(debug.Stack()))
			err = delegation.Refuse(delegation.Internal, "", "internal error: nothing was issued")
		}
	}()
	return call()
}

// log writes one line for a call. It never sees a message.
func (i interceptor) log(ctx context.Context, method string, err error, took time.Duration) {
	level, code := slog.LevelInfo, codes.OK
	attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", took)}
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace_id", id.String()))
	}
	if refusal := delegation.AsError(err); refusal != nil {
		code = refusal.Reason.Wire().GRPC
		attrs = append(attrs, slog.String("reason", string(refusal.Reason)))
		if refusal.Reason == delegation.Internal {
			level = slog.LevelError
			if cause := errors.Unwrap(refusal); cause != nil {
				attrs = append(attrs, slog.String("cause", cause.Error()))
			}
		}
	}
	i.logger.LogAttrs(ctx, level, "grpc call", append(attrs, slog.String("code", code.String()))...)
}
