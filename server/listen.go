package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"deputy.example/deputy/server/internal/console"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/httpapi"
	"deputy.example/deputy/server/internal/rpc"
)

// fronts makes the gRPC server, the HTTP server with the consoles, and the HTTP server of
// operators.
func (s *Server) fronts(config Config, parts opened, engine *exchange.Engine, o Options) error {
	calls := rpc.Config{Engine: rpc.For(engine), Authority: s.isAuthority, Proxies: prefixes(config.Listen.GRPC.Proxies), Logger: o.Logger, TracerProvider: o.TracerProvider, Now: o.Now}
	if parts.grpc != nil {
		calls.TLS = credentials.NewTLS(parts.grpc)
	}
	var err error
	if s.rpc, err = rpc.New(calls); err != nil {
		return err
	}
	s.owns(closer(func() error { s.rpc.Stop(); return nil }))

	var tenants []httpapi.Tenant
	for i := range config.Tenants {
		tenants = append(tenants, config.Tenants[i].front(parts.tenants[i].Keys, config.Listen.HTTP.TLS.requests()))
	}
	oauth, err := httpapi.New(httpapi.Config{
		Engine: engine, Tenants: tenants, Logger: o.Logger, TracerProvider: o.TracerProvider, Now: o.Now,
	})
	if err != nil {
		return err
	}
	front, err := withConsoles(oauth, console.Config{
		Engine: console.For(engine), Sessions: s.ledger, Tenants: parts.consoles, Transport: o.KeyTransport,
		Logger: o.Logger, TracerProvider: o.TracerProvider, Now: o.Now,
	})
	if err != nil {
		return err
	}
	s.http = httpapi.NewServer(front, prefixes(config.Listen.HTTP.Proxies), o.Logger)
	// The wrapper also covers answers of the server itself.
	s.http.Handler = httpapi.StrictTransport(s.http.Handler)
	s.ops = httpapi.NewServer(httpapi.Ops(s.readiness.checks(), o.Registry), nil, o.Logger)
	return nil
}

// prefixes parses addresses and networks that were checked before.
func prefixes(list []string) (all []netip.Prefix) {
	for _, text := range list {
		if p, err := parsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// withConsoles adds the tenants' consoles to the OAuth endpoints.
func withConsoles(oauth http.Handler, c console.Config) (http.Handler, error) {
	if len(c.Tenants) == 0 {
		return oauth, nil
	}
	pages, err := console.New(c)
	if err != nil {
		return nil, err
	}
	isPage := console.Serves(c.Tenants)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isPage(r) {
			pages.ServeHTTP(w, r)
		} else {
			oauth.ServeHTTP(w, r)
		}
	}), nil
}

// isAuthority reports whether a name is one by which clients reach the gRPC listener.
func (s *Server) isAuthority(name string) bool {
	same := func(own string) bool {
		return strings.EqualFold(strings.TrimSuffix(own, ":443"), strings.TrimSuffix(name, ":443"))
	}
	if own := s.listen.GRPC.Authorities; len(own) > 0 {
		return slices.ContainsFunc(own, same)
	}
	host, port, err := net.SplitHostPort(s.GRPCAddr())
	if err != nil || !isLoopback(host) {
		return false
	}
	return slices.ContainsFunc([]string{host, "localhost"}, func(host string) bool { return same(net.JoinHostPort(host, port)) })
}

// bind listens on the addresses for which Options bring no listener. From here on clients can
// connect. They wait until Run.
func (s *Server) bind(ctx context.Context, parts opened, o Options) error {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "deputy_connections_refused_total",
		Help: "Connections that were closed at once, because there were too many of all or of their address.",
	}, []string{"listener"})
	if err := o.Registry.Register(refused); err != nil {
		return err
	}
	for _, listener := range []struct {
		name    string
		at      *net.Listener
		brought net.Listener
		address string
		speaks  func(net.Listener) net.Listener
	}{
		// The gRPC listener is not wrapped, because grpc-go adds TLS.
		{"grpc", &s.listeners.grpc, o.GRPC, s.listen.GRPC.Address, func(l net.Listener) net.Listener { return l }},
		{"http", &s.listeners.http, o.HTTP, s.listen.HTTP.Address, overHTTP(parts.http, true, o.Logger)},
		{"ops", &s.listeners.ops, o.Ops, s.listen.Ops.Address, overHTTP(parts.ops, false, o.Logger)},
	} {
		*listener.at = listener.brought
		if listener.brought == nil {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", listener.address)
			if err != nil {
				return fmt.Errorf("listen.%s: %w", listener.name, err)
			}
			s.owns(l)
			*listener.at = l
		}
		*listener.at = listener.speaks(newCrowd(*listener.at, maxConnections, refused.WithLabelValues(listener.name)))
	}
	return nil
}

// overHTTP returns a function that makes an HTTP listener from a TCP listener: HTTP/2 and HTTP/1.1
// over TLS, or only HTTP/1.1 over plaintext. With strict, answers over TLS that no handler gives
// have HSTS.
func overHTTP(config *tls.Config, strict bool, logger *slog.Logger) func(net.Listener) net.Listener {
	if config == nil {
		return httpapi.Plaintext
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	return func(l net.Listener) net.Listener { return httpapi.Secured(l, config, strict, logger) }
}

// GRPCAddr returns the address of the gRPC API, with the port that was bound.
func (s *Server) GRPCAddr() string { return s.listeners.grpc.Addr().String() }

// HTTPAddr returns the address of the OAuth endpoints.
func (s *Server) HTTPAddr() string { return s.listeners.http.Addr().String() }

// OpsAddr returns the address of health, readiness and metrics.
func (s *Server) OpsAddr() string { return s.listeners.ops.Addr().String() }
