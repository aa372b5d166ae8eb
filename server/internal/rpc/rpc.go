// Package rpc is the gRPC front: the services of deputy.v1 and the standard health service.
//
// The package owns what is specific to gRPC: limits of connections and messages, which metadata may
// carry a credential, and status codes. It turns a message into an [exchange.Call] and an outcome
// into a message. It must not know how a caller is authenticated, what a token permits or where
// anything is stored. It must not decide what the HTTP front would have to decide again.
package rpc

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/peers"
)

// Engine is what this front needs of exchange.Engine; For returns it. It is an interface so that
// the tests of this package and the conformance tests can script the outcomes.
type Engine interface {
	Exchange(context.Context, exchange.Call) ([]exchange.Outcome, error)
	Introspect(context.Context, exchange.Inquiry) (exchange.Introspection, error)
	Entry(context.Context, exchange.Inquiry) (exchange.Recorded, error)
	Chain(context.Context, exchange.Inquiry) ([]exchange.Recorded, error)
	Descendants(ctx context.Context, q exchange.Inquiry, after uint64, limit int) ([]exchange.Descendant, uint64, error)
	Search(ctx context.Context, q exchange.Inquiry, query ledger.Query) ([]exchange.Recorded, uint64, error)
	Reach(ctx context.Context, q exchange.Inquiry, agent delegation.Principal, depth int) (exchange.Reach, error)
	Tail(context.Context, exchange.Inquiry) (Tail, error)
	Checkpoint(context.Context, exchange.Inquiry) (exchange.Checkpoint, error)
	Proofs(ctx context.Context, q exchange.Inquiry, old uint64) (exchange.Proofs, error)
	Revoke(context.Context, exchange.RevokeCall) (exchange.Revoked, error)
	Receipts(ctx context.Context, q exchange.Inquiry, entry uint64) (exchange.Receipts, error)
	Watch(context.Context, exchange.Inquiry) (Feed, error)
	Unauthenticated(context.Context) error
}

// Config is what New needs.
type Config struct {
	Engine Engine
	// TLS are the server's transport credentials; nil: none, for a loopback address or behind a
	// proxy that ends TLS.
	TLS credentials.TransportCredentials
	// Timeout bounds one unary call. The client's deadline does so where it is nearer.
	// Default: 10 s.
	Timeout time.Duration
	// MaxConnectionAge makes clients reconnect, so that load spreads to new instances.
	// Default: 30 min.
	MaxConnectionAge time.Duration
	// Authority reports whether the server is reached by this name, as :authority has it: host or
	// host:port. DPoP proofs are made for a name of the server's. Nil: it has none, and no proof is
	// valid.
	Authority func(string) bool
	// Proxies are addresses of proxies that append their clients to x-forwarded-for. Nil: none.
	Proxies []netip.Prefix
	// Reflection shows every peer which services and messages there are.
	Reflection bool
	// Waits bound how long a connection or a call may stay idle.
	Waits          Waits
	Logger         *slog.Logger         // nil: discard
	TracerProvider trace.TracerProvider // nil: no traces
	Now            func() time.Time     // nil: time.Now
}

// Bounds of what an unauthenticated peer can make this process hold. A batch of 100 children, each
// with an actor token of 8 KiB, fits a message. Metadata has room for one token.
const (
	maxMessageBytes  = 1 << 20
	maxMetadataBytes = 16 << 10
	// maxStreams is for one connection, because a proxy may bring all watchers through one.
	maxStreams      = exchange.MaxWatchers + 500
	readBufferBytes = 8 << 10 // each connection holds one while it is open
	// streamWindow is what a call may send beyond the message that is being read. Without it
	// grpc-go grows the window to 16 MiB.
	streamWindow     = 64 << 10
	connectionWindow = 1 << 20 // data in flight; calls hold what has arrived
	// workers is the number of goroutines that keep their grown stacks for the next call. Further
	// calls get new goroutines.
	workers    = 128
	drainGrace = 20 * time.Second
)

// Waits are how long a connection or a call may stay idle. A field that is zero has its default.
type Waits struct {
	Connect time.Duration // until the handshakes are over; default 10 s
	// Message is the time until the first message of a call is whole. Until then the call holds
	// memory of an unauthenticated peer. Default 10 s.
	Message time.Duration
	Idle    time.Duration // of a connection without calls; default 15 min
	Ping    time.Duration // until a silent connection is sent a ping; default 1 min
	Pong    time.Duration // until its answer; an unfinished header is no answer; default 20 s
}

func (w Waits) withDefaults() Waits {
	return Waits{
		Connect: cmp.Or(w.Connect, 10*time.Second),
		Message: cmp.Or(w.Message, 10*time.Second),
		Idle:    cmp.Or(w.Idle, 15*time.Minute),
		Ping:    cmp.Or(w.Ping, time.Minute),
		Pong:    cmp.Or(w.Pong, 20*time.Second),
	}
}

// Server serves deputy.v1. Its methods are safe for concurrent use.
type Server struct {
	grpc     *grpc.Server
	health   *health.Server
	openings *openings
	watchers *watchers
}

// New registers all services. The server serves nothing before Serve is called, and its health is
// "not serving" until SetServing. The caller must stop it, also if it never served.
func New(c Config) (*Server, error) {
	if c.Engine == nil {
		return nil, errors.New("rpc: an engine is required")
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.MaxConnectionAge <= 0 {
		c.MaxConnectionAge = 30 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.TracerProvider == nil {
		c.TracerProvider = noop.NewTracerProvider()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Authority == nil {
		c.Authority = func(string) bool { return false }
	}
	c.Waits = c.Waits.withDefaults()
	i := interceptor{
		gate: gate{unauthenticated: c.Engine.Unauthenticated}, timeout: c.Timeout, logger: c.Logger, now: c.Now, sampled: peers.NewSampler(c.Now),
		tracer: c.TracerProvider.Tracer("deputy.example/deputy/server/internal/rpc"),
	}
	bounds := newOpenings(c.Waits, c.Proxies)
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxMetadataBytes),
		grpc.ConnectionTimeout(c.Waits.Connect),
		grpc.InTapHandle(bounds.tap),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle:     c.Waits.Idle,
			MaxConnectionAge:      c.MaxConnectionAge,
			MaxConnectionAgeGrace: drainGrace,
			Time:                  c.Waits.Ping,
			Timeout:               c.Waits.Pong,
		}),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(readBufferBytes),
		grpc.NumStreamWorkers(workers),
		grpc.ChainUnaryInterceptor(i.unary),
		grpc.ChainStreamInterceptor(i.stream),
	}
	if c.TLS != nil {
		options = append(options, grpc.Creds(c.TLS))
	}
	s := &Server{grpc: grpc.NewServer(options...), health: health.NewServer(), openings: bounds, watchers: newWatchers(c, i)}
	s.register(c)
	s.SetServing(false)
	return s, nil
}

// register is the one place where a service is registered. A method becomes reachable by its rule
// in methods. The interceptors, through which every call passes, refuse a method without a rule.
func (s *Server) register(c Config) {
	services := registrar{s.grpc}
	deputyv1.RegisterTokenExchangeServiceServer(services, &exchangeService{credentialReader: credentialReader{c.Authority}, engine: c.Engine})
	deputyv1.RegisterAuditServiceServer(services, &auditService{credentialReader: credentialReader{c.Authority}, engine: c.Engine, streams: &streams{draining: s.watchers.draining}})
	deputyv1.RegisterRevocationServiceServer(services, &revocationService{credentialReader: credentialReader{c.Authority}, engine: c.Engine, watchers: s.watchers})
	healthpb.RegisterHealthServer(services, s.health)
	if c.Reflection {
		reflection.Register(services)
	}
}

// Serve accepts connections until Drain or Stop. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	return s.grpc.Serve(identified{l, s.openings.unfinished})
}

// SetServing sets the health of the whole server and of each service.
func (s *Server) SetServing(serving bool) {
	state := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		state = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range []string{
		"", deputyv1.TokenExchangeService_ServiceDesc.ServiceName, deputyv1.AuditService_ServiceDesc.ServiceName,
		deputyv1.RevocationService_ServiceDesc.ServiceName,
	} {
		s.health.SetServingStatus(service, state)
	}
}

// Drain notifies health watchers and verifiers, which reconnect to another instance. It accepts no
// new calls, waits for those that run, and cuts off the rest when the context ends. Serve returns
// nil afterwards.
func (s *Server) Drain(ctx context.Context) {
	s.health.Shutdown()
	s.watchers.end()
	cut := context.AfterFunc(ctx, s.grpc.Stop)
	s.grpc.GracefulStop()
	cut()
}

// Stop closes all connections at once.
func (s *Server) Stop() { s.grpc.Stop() }
