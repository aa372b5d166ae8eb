package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
)

// The two ways to present a token (RFC 6750 §2.1, RFC 9449 §7.1).
const (
	schemeBearer = "Bearer"
	schemeDPoP   = "DPoP"
)

// The metadata keys of DPoP over gRPC, which are also the names of the HTTP headers.
const (
	metadataAuthorization = "authorization"
	metadataProof         = "dpop"
	metadataNonce         = "dpop-nonce"
)

// maxNonceBytes is the longest nonce that this side repeats to a server.
const maxNonceBytes = 256

// prover makes a new DPoP proof for every request to one server, with the server's newest nonce.
type prover struct {
	key  *dpop.Key // nil: there is no key to prove
	now  func() time.Time
	rand io.Reader

	nonce atomic.Pointer[string] // nil before the first nonce
}

// scheme returns the scheme for a token. The token's own cnf claim decides, so a token that is
// bound to a key is never sent as Bearer. A credential that is not a JWT binds to nothing.
func (p *prover) scheme(token string) (string, error) {
	u, err := delegation.Parse(token)
	if err != nil {
		return schemeBearer, nil
	}
	claim, bound := u.Claim("cnf")
	if !bound {
		return schemeBearer, nil
	}
	c, err := delegation.ReadConfirmation(claim)
	switch {
	case err != nil:
		return "", err
	case c.JKT == "":
		return schemeBearer, nil // the connection proves a certificate
	case p.key == nil:
		return "", errors.New("it is bound to a key, and there is no ProofKey")
	case c.JKT != p.key.Thumbprint():
		return "", errors.New("it is bound to another key than ProofKey")
	}
	return schemeDPoP, nil
}

// prove makes the proof for one request.
func (p *prover) prove(ctx context.Context, method, uri, scheme, token string) (string, error) {
	r := dpop.Request{Method: method, URI: uri, Nonce: p.nonceFor(ctx)}
	if scheme == schemeDPoP {
		r.AccessToken = token
	}
	return p.key.Prove(r, p.now(), p.rand)
}

type nonceKey struct{}

// nonceFor prefers the nonce that the server required for this request: one of another tenant may
// have come since.
func (p *prover) nonceFor(ctx context.Context) string {
	if nonce, asked := ctx.Value(nonceKey{}).(string); asked {
		return nonce
	}
	if nonce := p.nonce.Load(); nonce != nil {
		return *nonce
	}
	return ""
}

// remember keeps a nonce for later requests, and reports whether it is valid (RFC 9449 §8.1).
func (p *prover) remember(nonce string) bool {
	foreign := func(r rune) bool { return r < 0x21 || r > 0x7e || r == '"' || r == '\\' }
	if nonce == "" || len(nonce) > maxNonceBytes || strings.ContainsFunc(nonce, foreign) {
		return false
	}
	p.nonce.Store(&nonce)
	return true
}

// learn keeps the nonce in the outcome of a call. It returns the nonce only if a repetition of the
// call with it can succeed.
func (p *prover) learn(err error, given ...metadata.MD) (nonce string) {
	for _, md := range given {
		if values := md.Get(metadataNonce); len(values) == 1 {
			nonce = values[0]
		}
	}
	needed := needsNonce(err)
	if needed {
		if inError := delegation.FromStatus(err).Metadata[delegation.MetadataNonce]; inError != "" {
			nonce = inError
		}
	}
	if !p.remember(nonce) || !needed {
		return ""
	}
	return nonce
}

func needsNonce(err error) bool {
	return err != nil && delegation.FromStatus(err).Reason == delegation.ProofNonceNeeded
}

// interceptors repeat a call at once, and once, if it lacked only a nonce. Its credential and its
// proof are made again.
func (p *prover) interceptors() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(p.unary), grpc.WithChainStreamInterceptor(p.stream)}
}

func (p *prover) unary(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	var header, trailer metadata.MD
	options = append(slices.Clip(options), grpc.Header(&header), grpc.Trailer(&trailer))
	err := invoke(ctx, method, request, reply, cc, options...)
	nonce := p.learn(err, header, trailer)
	if nonce == "" {
		return err
	}
	err = invoke(context.WithValue(ctx, nonceKey{}, nonce), method, request, reply, cc, options...)
	p.learn(err, header, trailer)
	return err
}

// stream repeats a stream of one request. It cannot repeat a stream on which the caller sends too:
// that ends with proof_nonce_needed, and the next one has the nonce.
func (p *prover) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	first, err := open(ctx, desc, cc, method, options...)
	if err != nil {
		return nil, err
	}
	s := &provenStream{prover: p}
	s.current.Store(&first)
	if !desc.ClientStreams {
		s.again = func(nonce string) (grpc.ClientStream, error) {
			return open(context.WithValue(ctx, nonceKey{}, nonce), desc, cc, method, options...)
		}
	}
	return s, nil
}

// provenStream is a stream that was opened once or twice.
type provenStream struct {
	prover  *prover
	current atomic.Pointer[grpc.ClientStream]
	again   func(nonce string) (grpc.ClientStream, error) // nil: the stream cannot be repeated
	request any                                           // the only request, where again is set
	// heard: RecvMsg has returned before. It belongs to the receiving goroutine.
	heard bool
}

func (s *provenStream) stream() grpc.ClientStream { return *s.current.Load() }

func (s *provenStream) Header() (metadata.MD, error) { return s.stream().Header() }
func (s *provenStream) Trailer() metadata.MD         { return s.stream().Trailer() }
func (s *provenStream) Context() context.Context     { return s.stream().Context() }
func (s *provenStream) CloseSend() error             { return s.stream().CloseSend() }

func (s *provenStream) SendMsg(m any) error {
	if s.again != nil {
		s.request = m
	}
	return s.stream().SendMsg(m)
}

func (s *provenStream) RecvMsg(m any) error {
	err := s.stream().RecvMsg(m)
	if s.heard {
		return err
	}
	s.heard = true
	if err == nil {
		if header, headerErr := s.stream().Header(); headerErr == nil {
			s.prover.learn(nil, header)
		}
		return nil
	}
	nonce := s.prover.learn(err, s.stream().Trailer())
	if nonce == "" || s.again == nil {
		return err
	}
	second, err := s.again(nonce)
	if err != nil {
		return err
	}
	s.current.Store(&second)
	// io.EOF: RecvMsg returns the reason.
	if err := second.SendMsg(s.request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := second.CloseSend(); err != nil {
		return err
	}
	return second.RecvMsg(m)
}

// callCredentials authenticate each call with a Credential, and prove a key for it.
type callCredentials struct {
	credential Credential // nil: the call carries no credential
	prover     *prover
	plaintext  bool // one of the two plaintext transports of Config
}

func (c callCredentials) RequireTransportSecurity() bool { return !c.plaintext }

// GetRequestMetadata implements credentials.PerRPCCredentials. gRPC calls it for every attempt,
// also for its own retries.
func (c callCredentials) GetRequestMetadata(ctx context.Context, service ...string) (map[string]string, error) {
	md := make(map[string]string, 2)
	scheme, token := "", ""
	if c.credential != nil {
		var err error
		if token, err = c.credential.token(ctx); err != nil {
			return nil, err
		}
		if scheme, err = c.prover.scheme(token); err != nil {
			return nil, delegation.Refuse(delegation.ClientUnauthenticated, "", "the credential cannot be presented: %v", err)
		}
		md[metadataAuthorization] = scheme + " " + token
	}
	if c.prover.key == nil {
		return md, nil
	}
	uri, err := callURI(ctx, service)
	if err == nil {
		md[metadataProof], err = c.prover.prove(ctx, http.MethodPost, uri, scheme, token)
	}
	if err != nil {
		return nil, delegation.Refuse(delegation.ClientUnauthenticated, "", "no DPoP proof to call with: %v", err).WithCause(err)
	}
	return md, nil
}

// callURI returns the htu of the call for which gRPC requests credentials. gRPC passes the call's
// authority, without the default port, as the host of the service's address.
func callURI(ctx context.Context, service []string) (string, error) {
	info, known := credentials.RequestInfoFromContext(ctx)
	if !known || len(service) != 1 {
		return "", errors.New("gRPC does not name the call that it is for")
	}
	u, err := url.Parse(service[0])
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("the authority of the connection is not a host")
	}
	return dpop.CallURI(u.Host, info.Method), nil
}
