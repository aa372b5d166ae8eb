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

// maxNonceBytes bounds what a server can make us repeat.
const maxNonceBytes = 256

// prover makes a new DPoP proof for every request to one server, with the newest nonce that it gave.
type prover struct {
	key  *dpop.Key // nil: there is nothing to prove with
	now  func() time.Time
	rand io.Reader

	nonce atomic.Pointer[string] // nil before the first
}

// scheme says how the token has to be presented: by its own word, so that one that is bound to a key never
// goes out as Bearer. What is not a JWT binds to nothing.
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
		return schemeBearer, nil // a certificate is proven by the connection
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

// nonceFor prefers the nonce that this very request was asked for: another tenant's may have come since.
func (p *prover) nonceFor(ctx context.Context) string {
	if nonce, asked := ctx.Value(nonceKey{}).(string); asked {
		return nonce
	}
	if nonce := p.nonce.Load(); nonce != nil {
		return *nonce
	}
	return ""
}

// remember keeps a nonce for the requests to come, and says whether it is one (RFC 9449 §8.1).
func (p *prover) remember(nonce string) bool {
	foreign := func(r rune) bool { return r < 0x21 || r > 0x7e || r == '"' || r == '\\' }
	if nonce == "" || len(nonce) > maxNonceBytes || strings.ContainsFunc(nonce, foreign) {
		return false
	}
	p.nonce.Store(&nonce)
	return true
}

// learn takes the nonce from the outcome of a call. It returns it only where the same call would do with it.
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

// interceptors try a call again at once, and once, when nothing but a nonce was missing. Whatever the call
// is authenticated with is made anew.
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

// stream opens a stream of one request again. One that the caller sends on too cannot be: it ends with
// proof_nonce_needed, and the next one has the nonce.
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
	again   func(nonce string) (grpc.ClientStream, error) // nil: it is as it is
	request any                                           // the only one, where there is again
	heard   bool                                          // RecvMsg has returned before; belongs to whoever receives
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
	if err := second.SendMsg(s.request); err != nil && !errors.Is(err, io.EOF) { // EOF: RecvMsg knows why
		return err
	}
	if err := second.CloseSend(); err != nil {
		return err
	}
	return second.RecvMsg(m)
}

// callCredentials authenticate each call with what a Credential gives, and prove a key for it.
type callCredentials struct {
	credential Credential // nil: the call carries none
	prover     *prover
	plaintext  bool // one of the two transports that Config names as exceptions
}

func (c callCredentials) RequireTransportSecurity() bool { return !c.plaintext }

// GetRequestMetadata implements credentials.PerRPCCredentials. gRPC asks it again for every attempt, also
// for those that it makes by itself.
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

// callURI is the htu of the call that per-RPC credentials are asked for. gRPC says the authority that the
// call goes out with, without the default port, as the host of the service's address.
func callURI(ctx context.Context, service []string) (string, error) {
	info, known := credentials.RequestInfoFromContext(ctx)
	if !known || len(service) != 1 {
		return "", errors.New("gRPC does not say which call it is for")
	}
	u, err := url.Parse(service[0])
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("the authority of the connection is not a host")
	}
	return dpop.CallURI(u.Host, info.Method), nil
}
