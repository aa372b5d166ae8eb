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

// Transport says how the connection to Deputy is protected.
type Transport int

const (
	// TLS is the default: TLS 1.2 or later, the server's certificate verified.
	TLS Transport = iota
	// PlaintextLoopback sends without TLS, and only to this machine: a connection that ends at any
	// other address is refused before a credential is sent over it.
	PlaintextLoopback
	// PlaintextTrustedNetwork sends credentials and tokens without TLS to any address. Only for a
	// network that encrypts and authenticates by itself, such as a service mesh.
	PlaintextTrustedNetwork
)

// Config says where Deputy is and who calls.
type Config struct {
	// Address of Deputy's gRPC listener in gRPC's target syntax, for instance
	// "deputy.example:443". Required.
	Address string
	// Transport protects the connection. Default: TLS.
	Transport Transport
	// TLSConfig holds roots or a client certificate for TLS. Default: the system's roots.
	// InsecureSkipVerify is refused. A certificate that is replaced while the program runs belongs
	// behind GetClientCertificate, which is asked for every new connection.
	TLSConfig *tls.Config
	// Credential authenticates the caller. Nil is right only where each request carries an actor
	// token of caller audience.
	Credential Credential
	// ProofKey is the caller's DPoP key (RFC 9449): every call carries a new proof of it. It is needed to
	// exchange a token that is bound to it, or to call with a Credential that is, and what is granted to
	// the caller itself is bound to it. Default: none, and nothing is proven. See Key.ProofKey.
	ProofKey *dpop.Key
	// Timeout bounds one attempt; the context bounds them all. Default: 5 s.
	Timeout time.Duration
	// Attempts is how often a call is tried while Deputy answers "unavailable" or not at all.
	// Default: 4. Every attempt has the same idempotency key, and a credential and a proof of its own.
	// A call whose proof lacks Deputy's nonce is made again at once, and that does not count.
	Attempts int
	// DialOptions are applied last, for instance otelgrpc's stats handler.
	DialOptions []grpc.DialOption
	// Now is the wall clock that a token's expiry is computed with, and that proofs are dated by. Default:
	// time.Now. How long a TokenSource uses a token does not depend on it alone.
	Now func() time.Time
	// Rand gives the bytes of generated idempotency keys and of the jti of proofs. Default:
	// crypto/rand.Reader.
	Rand io.Reader
}

// Client calls Deputy over one gRPC connection, which it opens when it is first needed and again
// when it was lost. It is safe for concurrent use.
type Client struct {
	dial        func() (*grpc.ClientConn, error) // makes one more connection
	conn        *grpc.ClientConn
	tokens      deputyv1.TokenExchangeServiceClient
	audit       deputyv1.AuditServiceClient
	revocations deputyv1.RevocationServiceClient
	timeout     time.Duration
	attempts    int
	clock       clock
	rand        io.Reader
}

// New checks the configuration and makes a Client. It does not connect: a server that is down is
// an error of the first call, not of New.
func New(cfg Config) (*Client, error) {
	if cfg.Address == "" {
		return nil, errors.New("deputy client: Address is missing")
	}
	if strings.ContainsAny(cfg.Address, "?#") { // gRPC would drop what follows
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

// Close ends the connection; calls that are under way fail.
func (c *Client) Close() error { return c.conn.Close() }

func dialOptions(cfg Config, p *prover) ([]grpc.DialOption, error) {
	options := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		// A peer that stopped acknowledging is noticed within 10 s of what was sent to it. An idle
		// connection is left alone: servers that expect no pings close connections that send them.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Service configuration from DNS could switch on retries with the same assertion.
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
		// local refuses in its handshake every peer that is not on this machine, whatever the name
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
		return nil, errors.New("TLSConfig is set, and Transport says not to use TLS")
	}
	if cfg.Credential != nil || p.key != nil {
		options = append(options, grpc.WithPerRPCCredentials(perRPC))
	}
	if p.key != nil {
		options = append(options, p.interceptors()...)
	}
	return append(options, cfg.DialOptions...), nil
}

// watchRevocations opens a stream on a connection of its own, so that a connection which swallows
// everything can be given up without ending anybody's calls. hangUp ends both.
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

// call makes one call, again while Deputy is unavailable. Every method that comes here may be
// repeated: reads by nature, exchanges by their idempotency key, revocations because what was revoked
// twice is as dead as before.
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

// givenUp is what the caller's own context ended. The grant may exist: a repetition with the same
// idempotency key returns it.
func givenUp(ctx context.Context) *delegation.Error {
	return delegation.Refuse(delegation.DependencyDown, "", "the call was given up before Deputy answered").WithCause(context.Cause(ctx))
}

// retryDelay doubles from 100 ms to 2 s, is never shorter than what the server asked for, and
// carries jitter so that clients which failed together do not come back together.
func retryDelay(attempt int, asked time.Duration) time.Duration {
	step := min(100*time.Millisecond<<min(attempt-1, 10), 2*time.Second)
	return max(step/2, asked) + mathrand.N(step/2+1)
}

// pause waits, and returns false at once where the context would end first.
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

// newKey makes an identifier nobody has used: 130 random bits in letters and digits.
func newKey(random io.Reader) (string, error) {
	raw := make([]byte, 17)
	if _, err := io.ReadFull(random, raw); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw)[:26], nil
}
