package client

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"deputy.example/deputy/client/delegation"
)

// Methods maps the methods of a gRPC server to what a call needs. A method that is in neither field
// is refused, so a method that is added later is not open by accident.
type Methods struct {
	// Scopes maps full method names ("/calendar.v1.Calendar/List") to the scopes that a token must
	// allow. An empty set means that any token for this audience is enough.
	Scopes map[string]delegation.Scopes
	// Public lists full method names that need no token, such as health checks.
	Public []string
}

// UnaryServerInterceptor admits unary calls as Handler admits HTTP requests. The token is in
// "authorization" metadata and the proof of its key in "dpop" metadata, made for POST and
// dpop.CallURI. A nonce for the next proof is in "dpop-nonce" metadata, and in the ErrorInfo of a
// call that lacked it.
func (v *Verifier) UnaryServerInterceptor(methods Methods) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, err := v.admitCall(ctx, info.FullMethod, methods)
		if err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
}

// StreamServerInterceptor admits streams, and ends a stream whose token is no longer valid: at once
// when the token is revoked or expires, within seconds when its key was removed, and when
// revocations are no longer known here. The stream's context ends with the *AccessError as its
// cause, the handler's sends and receives fail, and the caller gets PERMISSION_DENIED, or
// UNAVAILABLE where revocations are not known. A proof is needed once, when the stream is opened.
func (v *Verifier) StreamServerInterceptor(methods Methods) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, by, err := v.admitStream(stream.Context(), info.FullMethod, methods)
		if err != nil {
			return err
		}
		if by == nil {
			return next(server, stream)
		}
		ctx, end := context.WithCancelCause(ctx)
		watching := make(chan struct{})
		go func() {
			defer close(watching)
			v.oversee(ctx, end, by)
		}()
		s := admittedStream{stream, ctx}
		err = next(server, s)
		end(nil)
		<-watching
		if ended := s.ended(); ended != nil {
			return ended
		}
		return err
	}
}

// recheckInterval is the longest time between two checks of a stream's token: the removal of a key
// gives no signal.
const recheckInterval = 10 * time.Second

// oversee ends a stream's context when its token is no longer valid.
func (v *Verifier) oversee(ctx context.Context, end context.CancelCauseFunc, a *admitted) {
	for {
		var changed <-chan struct{}
		staysFresh := recheckInterval
		if v.feed != nil {
			changed = v.feed.changed() // before judge, so a change during judge closes it
			staysFresh = v.feed.staysFresh()
		}
		if err := v.judge(ctx, a.token, a.verdict); err != nil {
			end(accessError(err))
			return
		}
		timer := time.NewTimer(min(a.verdict.Expiry().Sub(v.clock.wall()), staysFresh, recheckInterval))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// admittedStream fails when its context ends, even where the underlying stream would wait for the
// peer.
type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admittedStream) Context() context.Context { return s.ctx }

func (s admittedStream) RecvMsg(m any) error {
	return s.unlessEnded(func() error { return s.ServerStream.RecvMsg(m) })
}

func (s admittedStream) SendMsg(m any) error {
	return s.unlessEnded(func() error { return s.ServerStream.SendMsg(m) })
}

// unlessEnded runs an operation that only the peer, or the handler's return, can end. The handler
// must not use the message after an error, as with any gRPC stream.
func (s admittedStream) unlessEnded(operation func() error) error {
	if err := s.ended(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- operation() }()
	select {
	case err := <-done:
		return err
	case <-s.ctx.Done():
	}
	if err := s.ended(); err != nil {
		return err
	}
	return <-done // the peer is gone: the operation returns the reason
}

// ended returns the status of a stream whose token is no longer valid, or nil.
func (s admittedStream) ended() error {
	var access *AccessError
	if s.ctx.Err() == nil || !errors.As(context.Cause(s.ctx), &access) {
		return nil
	}
	if access.Code == AccessInvalidToken {
		return status.Error(codes.PermissionDenied, access.Error())
	}
	return access
}

// admitted is the token by which a call was admitted, with its verdict.
type admitted struct {
	token   string
	verdict *verdict
}

func (v *Verifier) admitCall(ctx context.Context, method string, methods Methods) (context.Context, error) {
	ctx, _, err := v.admitStream(ctx, method, methods)
	return ctx, err
}

// admitStream returns no admitted for a method that needs no token.
func (v *Verifier) admitStream(ctx context.Context, method string, methods Methods) (context.Context, *admitted, error) {
	if slices.Contains(methods.Public, method) {
		return ctx, nil, nil
	}
	required, known := methods.Scopes[method]
	if !known {
		return nil, nil, denied(AccessInsufficientScope, "no rule permits a caller of this method")
	}
	p, err := presentation(metadata.ValueFromIncomingContext(ctx, metadataAuthorization))
	if err != nil {
		return nil, nil, err
	}
	v.completeCall(ctx, method, &p)
	d, err := v.presented(ctx, p)
	if err != nil {
		giveNonce(ctx, accessError(err).Nonce, grpc.SetTrailer)
		return nil, nil, err
	}
	if err := d.require(required); err != nil {
		return nil, nil, err
	}
	if v.requireNonce {
		giveNonce(ctx, v.nonces.at(v.clock.now()), grpc.SetHeader)
	}
	return context.WithValue(ctx, contextKey{}, &d.Delegation), &admitted{p.Token, d}, nil
}

// completeCall adds the evidence that the caller holds a key or a certificate.
func (v *Verifier) completeCall(ctx context.Context, method string, p *Presentation) {
	if caller, known := peer.FromContext(ctx); known {
		if info, ok := caller.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			p.Certificate = info.State.PeerCertificates[0]
		}
	}
	if p.Scheme != schemeDPoP {
		return
	}
	p.Proofs, p.Method = metadata.ValueFromIncomingContext(ctx, metadataProof), http.MethodPost
	if authority := metadata.ValueFromIncomingContext(ctx, ":authority"); len(authority) == 1 {
		p.URI = v.callURI(authority[0], method)
	}
}

// giveNonce sends a nonce where callers without the SDK find it too: in the trailer, with an error,
// or in the header, before an answer. It has no effect outside a real call.
func giveNonce(ctx context.Context, nonce string, set func(context.Context, metadata.MD) error) {
	if nonce != "" {
		_ = set(ctx, metadata.Pairs(metadataNonce, nonce))
	}
}
