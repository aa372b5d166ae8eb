package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/keepalive"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/client/dpop"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// Transport is how the connection to Deputy is protected.
type Transport int

const (
	// TLS is the default: TLS 1.2 or later, with a verified server certificate.
	TLS Transport = iota
	// PlaintextLoopback sends without TLS, and only to this machine. A connection to any other
	// address is refused before a credential is sent over it.
	PlaintextLoopback
	// PlaintextTrustedNetwork sends credentials and tokens without TLS to any address. It is only
	// for a network that encrypts and authenticates by itself, such as a service mesh.
	PlaintextTrustedNetwork
)

// Config holds Deputy's address and the caller's credential.
type Config struct {
	// Address of Deputy's gRPC listener in gRPC's target syntax, for instance "deputy.example:443".
	// Required.
	Address string
	// Transport protects the connection. Default: TLS.
	Transport Transport
	// TLSConfig holds roots or a client certificate for TLS. Default: the system's roots.
	// InsecureSkipVerify is refused. Set GetClientCertificate for a certificate that is replaced
	// while the program runs: it is called for every new connection.
	TLSConfig *tls.Config
	// Credential authenticates the caller. Nil is correct only where each request carries an actor
	// token of caller audience.
	Credential Credential
	// ProofKey is the caller's DPoP key (RFC 9449): every call carries a new proof of it. It is
	// required to exchange a token that is bound to it and to call with a Credential that is bound
	// to it. Tokens that are granted to the caller itself are bound to it. Default: none, and
	// nothing is proven. See Key.ProofKey.
	ProofKey *dpop.Key
	// Timeout bounds one attempt. The context bounds all attempts. Default: 5 s.
	Timeout time.Duration
	// Attempts is the number of attempts of a call while Deputy answers "unavailable" or not at
	// all. Default: 4. Every attempt has the same idempotency key, and its own credential and
	// proof. A call whose proof lacks Deputy's nonce is repeated at once, and that does not count.
	Attempts int
	// DialOptions are applied last, for instance otelgrpc's stats handler.
	DialOptions []grpc.DialOption
	// Now is the wall clock for a token's expiry and for the dates of proofs. Default: time.Now.
	// How long a TokenSource uses a token does not depend on it alone.
	Now func() time.Time
	// Rand is the source of random bytes for generated idempotency keys and the jti of proofs.
	// Default: crypto/rand.Reader.
	Rand io.Reader
}

// Client calls Deputy over one gRPC connection. It opens the connection when it is first needed,
// and again after a loss. It is safe for concurrent use.
type Client struct {
	dial        func() (*grpc.ClientConn, error) // makes a further connection
	conn        *grpc.ClientConn
	tokens      deputyv1.TokenExchangeServiceClient
	audit       deputyv1.AuditServiceClient
	revocations deputyv1.RevocationServiceClient
	timeout     time.Duration
	attempts    int
	clock       clock
	rand        io.Reader
}

// New checks the configuration and makes a Client. It does not connect: if the server is down, the
// first call fails, not New.
func New(cfg Config) (*Client, error) {
	if cfg.Address == "" {
		return nil, errors.New("deputy client: Address is missing")
	}
	if strings.ContainsAny(cfg.Address, "?#") { // gRPC would drop the rest
		return nil, errors.New("deputy client: Address: must have no query and no fragment; write # in a path as %23")
	}
	if cfg.Timeout < 0 || cfg.Attempts < 0 {
		return nil, errors.New("deputy client: Timeout and Attempts must not be negative")
	}
	c := newClient(cfg)
	options, err := dialOptions(cfg, &prover{key: cfg.ProofKey, now: c.clock.wall, rand: c.rand})
	if err != nil {
		return nil, fmt.Errorf("deputy client: %w", err)
	}
	c.dial = func() (*grpc.ClientConn, error) { return grpc.NewClient(cfg.Address, options...) }
	if c.conn, err = c.dial(); err != nil {
		return nil, fmt.Errorf("deputy client: %w", err)
	}
	c.tokens = deputyv1.NewTokenExchangeServiceClient(c.conn)
	c.audit = deputyv1.NewAuditServiceClient(c.conn)
	c.revocations = deputyv1.NewRevocationServiceClient(c.conn)
	return c, nil
}

func newClient(cfg Config) *Client {
	c := &Client{timeout: cfg.Timeout, attempts: cfg.Attempts, clock: clockOf(cfg.Now), rand: cfg.Rand}
	if c.timeout == 0 {
		c.timeout = 5 * time.Second
	}
	if c.attempts == 0 {
		c.attempts = 4
	}
	if c.rand == nil {
		c.rand = rand.Reader
	}
	return c
}

// Close ends the connection. Running calls fail.
func (c *Client) Close() error { return c.conn.Close() }

func dialOptions(cfg Config, p *prover) ([]grpc.DialOption, error) {
	options := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		// A peer that stopped acknowledging is detected within 10 s of the last sent data. An idle
		// connection is left alone: servers that expect no pings close connections that send them.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Service configuration from DNS could enable retries with the same assertion.
		grpc.WithDisableServiceConfig(),
	}
	perRPC := callCredentials{credential: cfg.Credential, prover: p}
	switch cfg.Transport {
	case TLS:
		tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
		if cfg.TLSConfig != nil {
			tlsConfig = cfg.TLSConfig.Clone()
			tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS12)
		}
		if tlsConfig.InsecureSkipVerify {
			return nil, errors.New("TLSConfig.InsecureSkipVerify would hand credentials to anyone who answers")
		}
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	case PlaintextLoopback:
		// The handshake of local refuses every peer that is not on this machine, whatever the name
		// in Address resolved to.
		options = append(options, grpc.WithTransportCredentials(local.NewCredentials()), grpc.WithNoProxy())
		perRPC.plaintext = true
	case PlaintextTrustedNetwork:
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
		perRPC.plaintext = true
	default:
		return nil, fmt.Errorf("Transport %d is unknown", cfg.Transport)
	}
	if cfg.TLSConfig != nil && cfg.Transport != TLS {
		return nil, errors.New("TLSConfig: must not be set with a Transport that does not use TLS; remove one of them")
	}
	if cfg.Credential != nil || p.key != nil {
		options = append(options, grpc.WithPerRPCCredentials(perRPC))
	}
	if p.key != nil {
		options = append(options, p.interceptors()...)
	}
	return append(options, cfg.DialOptions...), nil
}

// watchRevocations opens a stream on a connection of its own. So a connection that drops all data
// can be closed without an effect on other calls. hangUp ends stream and connection.
func (c *Client) watchRevocations(ctx context.Context) (stream watchStream, hangUp func(), err error) {
	conn, err := c.dial()
	if err != nil {
		return nil, nil, err
	}
	if stream, err = deputyv1.NewRevocationServiceClient(conn).WatchRevocations(ctx); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return stream, func() { conn.Close() }, nil
}

// call makes one call, and repeats it while Deputy is unavailable. Every method that is passed to
// it may be repeated: reads by nature, exchanges by their idempotency key, revocations because a
// second revocation of the same target changes nothing.
func call[Request, Response any](ctx context.Context, c *Client,
	method func(context.Context, *Request, ...grpc.CallOption) (*Response, error), request *Request,
) (*Response, error) {
	for attempt := 1; ; attempt++ {
		response, err := callOnce(ctx, c.timeout, method, request)
		if err == nil {
			return response, nil
		}
		if ctx.Err() != nil {
			return nil, givenUp(ctx)
		}
		refusal := delegation.FromStatus(err)
		if refusal.Reason != delegation.DependencyDown || attempt >= c.attempts {
			return nil, refusal
		}
		if !pause(ctx, retryDelay(attempt, refusal.RetryAfter)) {
			return nil, refusal
		}
	}
}

func callOnce[Request, Response any](ctx context.Context, timeout time.Duration,
	method func(context.Context, *Request, ...grpc.CallOption) (*Response, error), request *Request,
) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return method(ctx, request)
}

// givenUp is the error of a call that the caller's own context ended. The grant may exist: a
// repetition with the same idempotency key returns it.
func givenUp(ctx context.Context) *delegation.Error {
	return delegation.Refuse(delegation.DependencyDown, "", "the call was given up before Deputy answered").WithCause(context.Cause(ctx))
}

// retryDelay doubles from 100 ms to 2 s and is never shorter than the delay that the server
// requested. Its jitter keeps clients that failed together from returning together.
func retryDelay(attempt int, asked time.Duration) time.Duration {
	step := min(100*time.Millisecond<<min(attempt-1, 10), 2*time.Second)
	return max(step/2, asked) + mathrand.N(step/2+1)
}

// pause waits for d. It returns false at once if the context would end first.
func pause(ctx context.Context, d time.Duration) bool {
	if deadline, bounded := ctx.Deadline(); bounded && time.Until(deadline) <= d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newKey makes a unique identifier: 130 random bits in letters and digits.
func newKey(random io.Reader) (string, error) {
	raw := make([]byte, 17)
	if _, err := io.ReadFull(random, raw); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw)[:26], nil
}
