package rpc

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/peers"
)

// interceptor does for every call what no method may omit: the trace, the deadline, the rule of the
// method, panics, errors and the log.
type interceptor struct {
	gate    gate
	timeout time.Duration
	logger  *slog.Logger
	tracer  trace.Tracer
	now     func() time.Time
	sampled *peers.Sampler // lines of unauthenticated callers
}

func (i interceptor) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := i.now()
	call := openingOf(ctx)
	defer call.answered()
	call.messageCame()
	ctx, span := i.trace(ctx, info.FullMethod)
	defer span.End()
	ctx, cancel := exchange.Visit(ctx, i.timeout)
	defer cancel()
	var response any
	err := i.guard(ctx, info.FullMethod, func() (err error) {
		if call.refusal != nil {
			return call.refusal
		}
		if err = i.gate.admitMethod(ctx, info.FullMethod); err != nil {
			return err
		}
		if err = i.gate.admitMessage(ctx, info.FullMethod, request); err != nil {
			return err
		}
		response, err = handle(ctx, request)
		return err
	})
	i.log(ctx, info.FullMethod, err, i.now().Sub(began))
	if err != nil {
		return nil, answer(err, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	}
	return response, nil
}

// answer returns the gRPC status of an error. The nonce for the next DPoP proof is sent as metadata
// too. Over HTTP it is a header (RFC 9449 §8).
func answer(err error, trailer func(metadata.MD)) error {
	refusal := delegation.AsError(err)
	if nonce := refusal.Metadata[delegation.MetadataNonce]; nonce != "" {
		trailer(metadata.Pairs("dpop-nonce", nonce))
	}
	return refusal.GRPCStatus().Err()
}

// stream sets no deadline: the method determines how long a stream lives. The standard services,
// health watches and reflection where it is on, have errors of their own, which pass unchanged.
func (i interceptor) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	began := i.now()
	call := openingOf(stream.Context())
	defer call.answered()
	ctx, span := i.trace(stream.Context(), info.FullMethod)
	defer span.End()
	ctx, cancel := exchange.Visit(ctx, 0)
	defer cancel()
	err := i.guard(ctx, info.FullMethod, func() error {
		if call.refusal != nil {
			return call.refusal
		}
		if err := i.gate.admitMethod(ctx, info.FullMethod); err != nil {
			return err
		}
		err := handle(server, admitted{stream, ctx, i.gate, info.FullMethod})
		if context.Cause(ctx) == errCrowded {
			return tooMany
		}
		return err
	})
	if typed := new(delegation.Error); !strings.HasPrefix(info.FullMethod, ownMethods) && !errors.As(err, &typed) {
		return err
	}
	i.log(ctx, info.FullMethod, err, i.now().Sub(began))
	if err != nil {
		return answer(err, stream.SetTrailer)
	}
	return nil
}

// ownMethods is the beginning of the full name of each method of deputy.v1.
const ownMethods = "/deputy.v1."

// trace begins the span of a call, in the trace that its caller names. Trace context is accepted.
// Baggage, which anyone may fill, is not.
func (i interceptor) trace(ctx context.Context, method string) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx, traceContext{ctx})
	return i.tracer.Start(ctx, strings.TrimPrefix(method, "/"), trace.WithSpanKind(trace.SpanKindServer))
}

// traceContext reads the trace context from the metadata of a call.
type traceContext struct{ of context.Context }

// Get returns the first value of a key, or "".
func (c traceContext) Get(key string) string {
	if values := metadata.ValueFromIncomingContext(c.of, key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set does nothing: incoming metadata is not changed.
func (traceContext) Set(string, string) {}

// Keys returns the keys of W3C Trace Context.
func (traceContext) Keys() []string { return propagation.TraceContext{}.Fields() }

// guard turns a panic into an internal error without details.
func (i interceptor) guard(ctx context.Context, method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			_ = panics.Caught(ctx, i.logger, p, "method", method)
			err = delegation.Refuse(delegation.Internal, "", "internal error")
		}
	}()
	return call()
}

// log writes one line for a call, and completes its span. It never receives a message.
func (i interceptor) log(ctx context.Context, method string, err error, took time.Duration) {
	level, code := slog.LevelInfo, codes.OK
	attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", took)}
	span := trace.SpanFromContext(ctx)
	if id := span.SpanContext().TraceID(); id.IsValid() {
		attrs = append(attrs, slog.String("trace_id", id.String()))
	}
	if refusal := delegation.AsError(err); refusal != nil {
		reason, _ := exchange.Failed(ctx, refusal)
		code = refusal.Reason.Wire().GRPC
		if reason == exchange.ReasonCanceled {
			code = status.FromContextError(ctx.Err()).Code()
		}
		attrs = append(attrs, slog.String("reason", reason))
		if reason == string(delegation.Internal) {
			level = slog.LevelError
			span.SetStatus(otelcodes.Error, reason)
			if cause := errors.Unwrap(refusal); cause != nil {
				attrs = append(attrs, slog.String("cause", cause.Error()))
			}
		}
	}
	if span.IsRecording() {
		span.SetAttributes(attribute.String("rpc.system.name", "grpc"), attribute.String("rpc.response.status_code", code.String()))
	}
	attrs = append(attrs, slog.String("code", code.String()))
	if level < slog.LevelError && !exchange.Authenticated(ctx) {
		i.sampled.Log(ctx, i.logger, level, "grpc call", attrs...)
		return
	}
	i.logger.LogAttrs(ctx, level, "grpc call", attrs...)
}
