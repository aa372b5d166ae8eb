package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/rpc"
	"deputy.example/deputy/server/internal/vault"
)

// Options replace parts that New would make. The zero value is for production.
type Options struct {
	PolicyTransport http.RoundTripper // reaches OpenFGA; nil: the network
	KeyTransport    http.RoundTripper // reaches the keys of trusted issuers; nil: the network
	// CreateKeys makes each tenant's first signing key if its file does not exist. It is for
	// development: each of two instances would make its own key.
	CreateKeys bool
	// GRPC, HTTP and Ops are listeners in place of the configured addresses. New takes ownership of
	// them.
	GRPC, HTTP, Ops net.Listener

	Logger         *slog.Logger         // nil: as configured, to standard error
	Registry       *prometheus.Registry // nil: a new one with the metrics of Go and of the process
	TracerProvider trace.TracerProvider // nil: as configured. The caller shuts it down.
	// Now is the wall clock. It is compared with Elapsed, which grows with real time and is never
	// stepped, and with the clocks of PostgreSQL and Redis, whose answers Remote may change. A test
	// that moves Now moves the others too, or the instance refuses. nil: time.Now, the time since
	// the machine was started, and the answers as they are.
	Now     func() time.Time
	Elapsed func() time.Duration
	Remote  func(source string, answer time.Time) time.Time
}

// Server is one instance of Deputy. New opens it and accepts connections. Run serves.
type Server struct {
	listen    Listen
	logger    *slog.Logger
	readiness *readiness
	tenants   []exchange.Tenant
	engine    *exchange.Engine
	ledger    *ledger.Ledger
	vault     *vault.Vault
	clock     *clock.Clock
	clocks    []clock.Source // of other machines
	rpc       *rpc.Server
	http, ops *http.Server
	listeners struct{ grpc, http, ops net.Listener }
	opened    []io.Closer // in order
}

// New checks the configuration, opens the ledger, which must be migrated, and listens. OpenFGA,
// Redis and trusted issuers need not be reachable yet: readiness reports them.
func New(ctx context.Context, config Config, o Options) (_ *Server, err error) {
	s := &Server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, l := range []net.Listener{o.GRPC, o.HTTP, o.Ops} {
		s.owns(l)
	}
	if err := config.locate(config.check(), nil).err(); err != nil {
		return nil, fmt.Errorf("configuration:\n%w", err)
	}
	if err := s.observe(ctx, config.Telemetry, &o); err != nil {
		return nil, err
	}
	times := config.Clock.open(o)
	o.Now = times.Now // all parts below use this clock
	parts, unopened := config.open(o)
	if err := config.locate(nil, unopened).err(); err != nil {
		return nil, fmt.Errorf("configuration:\n%w", err)
	}
	s.listen, s.logger, s.tenants = config.Listen, o.Logger, parts.tenants
	for _, t := range parts.tenants {
		s.owns(closer(func() error { t.Policy.Close(); return nil }))
	}
	records, err := ledger.Open(ctx, parts.database, ledger.Config{
		Logger: o.Logger, Registerer: o.Registry, Clock: times, Skews: skews(parts.tenants), Retention: config.retention(),
	})
	if err != nil {
		return nil, err
	}
	s.owns(records)
	s.ledger = records
	limiter, redis, err := config.Redis.open(parts.redis, guard.Config{Timeout: config.Redis.Timeout, Now: o.Now, Registerer: o.Registry})
	if err != nil {
		return nil, err
	}
	s.owns(redis)
	s.clock, s.clocks = times, clocks(records, limiter, config.Redis)
	times.Compare(ctx, s.clocks...)
	if err := s.beginKeys(ctx, parts, o); err != nil {
		return nil, err
	}
	engine, err := exchange.New(exchange.Config{
		Tenants: parts.tenants, Ledger: records, Guard: limiter,
		Logger: o.Logger, Registerer: o.Registry, TracerProvider: o.TracerProvider, Now: o.Now,
	})
	if err != nil {
		return nil, err
	}
	s.engine, s.readiness = engine, newReadiness(records, limiter, engine)
	if err := s.fronts(config, parts, engine, o); err != nil {
		return nil, err
	}
	return s, s.bind(ctx, parts, o)
}

// Run serves until ctx ends or a component fails, drains, and closes everything, the ledger last.
// The error names the component. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	collectLess()
	group, ctx := errgroup.WithContext(ctx)
	run := func(name string, component func() error) {
		group.Go(func() error {
			if err := component(); ctx.Err() == nil { // no component may end before ctx
				return fmt.Errorf("%s: %w", name, cmp.Or(err, errEnded))
			}
			return nil
		})
	}
	run("gRPC server", func() error { return s.rpc.Serve(s.listeners.grpc) })
	run("HTTP server", func() error { return s.http.Serve(s.listeners.http) })
	run("ops server", func() error { return s.ops.Serve(s.listeners.ops) })
	for _, t := range s.tenants {
		run("keys of tenant "+t.Name, func() error {
			err := t.Trust.Run(ctx)
			if err == nil {
				<-ctx.Done() // without a vault no key can change
			}
			return err
		})
	}
	run("clock", func() error { return s.clock.Run(ctx, s.clocks...) })
	run("managed keys", func() error { return s.vault.Run(ctx) })
	run("revocations", func() error { return s.engine.Follow(ctx) })
	run("checkpoints", func() error { return s.engine.Checkpoints(ctx) })
	run("probe of the ledger", func() error { return s.ledger.Beat(ctx) })
	run("ledger", func() error { return s.ledger.Maintain(ctx, names(s.tenants)...) })
	group.Go(func() error {
		s.readiness.watch(ctx, s.rpc.SetServing)
		s.drain()
		return nil
	})
	s.logger.Info("serving", "grpc", s.GRPCAddr(), "http", s.HTTPAddr(), "ops", s.OpsAddr(), "tenants", len(s.tenants))
	err := group.Wait()
	s.logger.Info("stopped", "error", err)
	return errors.Join(err, s.Close())
}

var errEnded = errors.New("it ended by itself")

func names(tenants []exchange.Tenant) (list []string) {
	for _, t := range tenants {
		list = append(list, t.Name)
	}
	return list
}

// drain reports to load balancers that the instance is not ready, then accepts nothing new and
// waits for what runs. Readiness is served until the end.
func (s *Server) drain() {
	s.logger.Info("draining", "notice", s.listen.DrainNotice, "timeout", s.listen.DrainTimeout)
	time.Sleep(s.listen.DrainNotice)
	ctx, cancel := context.WithTimeout(context.Background(), s.listen.DrainTimeout)
	defer cancel()
	var draining sync.WaitGroup
	draining.Go(func() { s.rpc.Drain(ctx) })
	draining.Go(func() { shutdown(ctx, s.http) })
	draining.Wait()
	shutdown(ctx, s.ops)
}

// shutdown waits for running requests, and cuts them off when ctx ends.
func shutdown(ctx context.Context, h *http.Server) {
	if h.Shutdown(ctx) != nil {
		_ = h.Close() // its connections are lost in any case
	}
}

// owns registers what Close must close.
func (s *Server) owns(c io.Closer) {
	if c != nil {
		s.opened = append(s.opened, c)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

// Close releases what New opened, the newest first. It is for a Server that never runs. Run calls
// it.
func (s *Server) Close() error {
	var errs []error
	for _, c := range slices.Backward(s.opened) {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.opened = nil
	return errors.Join(errs...)
}
