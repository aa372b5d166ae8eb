package client

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
)

// Methods says what the calls to a gRPC server need. A method that is in neither field is refused:
// one that is added later is not open by accident.
type Methods struct {
	// Scopes maps full method names ("/calendar.v1.Calendar/List") to the scopes that a token must
	// allow. An empty set means that any token for this audience is enough.
	Scopes map[string]delegation.Scopes
	// Public lists full method names that need no token, such as health checks.
	Public []string
}

// UnaryServerInterceptor admits unary calls as Handler admits HTTP requests, with the token in
// "authorization: Bearer" metadata.
func (v *Verifier) UnaryServerInterceptor(methods Methods) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, err := v.admitCall(ctx, info.FullMethod, methods)
		if err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
}

// StreamServerInterceptor admits streams. The token is checked when the stream begins: a server
// with long streams watches Delegation.Expiry itself.
func (v *Verifier) StreamServerInterceptor(methods Methods) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, err := v.admitCall(stream.Context(), info.FullMethod, methods)
		if err != nil {
			return err
		}
		return next(server, admittedStream{stream, ctx})
	}
}

type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admittedStream) Context() context.Context { return s.ctx }

func (v *Verifier) admitCall(ctx context.Context, method string, methods Methods) (context.Context, error) {
	if slices.Contains(methods.Public, method) {
		return ctx, nil
	}
	required, known := methods.Scopes[method]
	if !known {
		return nil, denied(AccessInsufficientScope, "no rule says who may call this method")
	}
	token, err := bearerToken(metadata.ValueFromIncomingContext(ctx, "authorization"))
	if err != nil {
		return nil, err
	}
	d, err := v.Verify(ctx, token)
	if err != nil {
		return nil, accessError(err)
	}
	if err := d.require(required); err != nil {
		return nil, err
	}
	return context.WithValue(ctx, contextKey{}, d), nil
}
