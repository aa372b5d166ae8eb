package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"deputy.example/deputy/client/delegation"
	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/peers"
)

// TestHealthWatchesAreBounded: a watch beyond the bound of its connection is refused with a reason.
// Checks are still served, and a watch that ends frees its place.
func TestHealthWatchesAreBounded(t *testing.T) {
	_, conn := dial(t, Config{Engine: granting()})
	client := healthpb.NewHealthClient(conn)
	watch := func() (context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		stream, err := client.Watch(bare(ctx), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return cancel, err
	}
	var leave context.CancelFunc
	for n := range 100 {
		cancel, err := watch()
		if err != nil {
			t.Fatalf("watch %d: %v", n, err)
		}
		leave = cancel
	}
	_, err := watch()
	if e := delegation.FromStatus(err); !is(err, delegation.RateLimited) || status.Code(err) != codes.ResourceExhausted || e.RetryAfter <= 0 {
		t.Errorf("one more: %v", err)
	}
	if _, err := client.Check(bare(t.Context()), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a check: %v", err)
	}
	leave()
	for { // the server is informed of the end soon
		if _, err := watch(); err == nil {
			break
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// elsewhere is a connection from another address.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} }

// TestHealthWatchesMakeRoom: a watch whose place is freed for another address ends with a reason.
func TestHealthWatchesMakeRoom(t *testing.T) {
	server, conn := dial(t, Config{Engine: granting()})
	server.openings.public = peers.NewLasting(2, 2, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var watches []healthpb.Health_WatchClient
	for range 2 {
		stream, err := healthpb.NewHealthClient(conn).Watch(bare(ctx), &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, stream)
	}
	if server.openings.public.Enter(peers.NewConnection(elsewhere{}), nil) == nil {
		t.Fatal("one address has all places")
	}
	if _, err := watches[0].Recv(); !is(err, delegation.RateLimited) {
		t.Errorf("the oldest: %v", err)
	}
	server.SetServing(true)
	for state := healthpb.HealthCheckResponse_UNKNOWN; state != healthpb.HealthCheckResponse_SERVING; {
		answer, err := watches[1].Recv()
		if err != nil {
			t.Fatalf("the other: %v", err)
		}
		state = answer.GetStatus()
	}
}

// TestUnboundedCallsAreRefused: a call that did not pass the tap is refused, and so is a call on a
// connection without a state.
func TestUnboundedCallsAreRefused(t *testing.T) {
	if openingOf(t.Context()).refusal == nil {
		t.Error("a call that did not pass the tap is served")
	}
	for name, from := range map[string]*peer.Peer{"no peer": nil, "a peer of another listener": {Addr: &net.TCPAddr{}}} {
		ctx := t.Context()
		if from != nil {
			ctx = peer.NewContext(ctx, from)
		}
		ctx, err := newOpenings(Waits{}.withDefaults(), nil).tap(ctx, &tap.Info{Header: metadata.Pairs("content-type", "application/grpc")})
		if err != nil || openingOf(ctx).refusal == nil {
			t.Errorf("%s: the call is served (%v)", name, err)
		}
		openingOf(ctx).answered()
	}
}

// logged is a log that several goroutines write to.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
	line chan struct{} // one for each line
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.line <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *logged) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.text.String() }

// TestClientsThatHangUp: a call whose caller has left is no error in the log, for any failure. The
// control is the same failure for a caller that waits.
func TestClientsThatHangUp(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *grpc.ClientConn) context.Context{
		"it cancels": func(t *testing.T, _ *grpc.ClientConn) context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			return context.WithValue(ctx, leaveKey{}, cancel)
		},
		"its deadline passes": func(t *testing.T, _ *grpc.ClientConn) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		},
		"its connection breaks": func(t *testing.T, conn *grpc.ClientConn) context.Context {
			return context.WithValue(t.Context(), leaveKey{}, context.CancelFunc(func() { _ = conn.Close() }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := &logged{line: make(chan struct{}, 1)}
			engine, arrived := granting(), make(chan struct{}, 1)
			engine.introspect = func(ctx context.Context, _ exchange.Inquiry) (exchange.Introspection, error) {
				arrived <- struct{}{}
				<-ctx.Done()
				return exchange.Introspection{}, fmt.Errorf("what it waited for was cut off: %w", ctx.Err())
			}
			server, err := New(Config{Engine: engine, Logger: slog.New(slog.NewTextHandler(log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			victim := redial(t, server)
			ctx := leave(t, victim)
			over := make(chan error, 1)
			go func() {
				_, err := deputyv1.NewTokenExchangeServiceClient(victim).Introspect(ctx, &deputyv1.IntrospectRequest{Token: "t"})
				over <- err
			}()
			<-arrived
			if cancel, is := ctx.Value(leaveKey{}).(context.CancelFunc); is {
				cancel()
			}
			if err := <-over; err == nil {
				t.Error("it was answered")
			}
			<-log.line
			if text := log.String(); strings.Contains(text, "level=ERROR") || !strings.Contains(text, "reason=canceled") || strings.Contains(text, "code=Internal") {
				t.Error(text)
			}
		})
	}
	log := &logged{line: make(chan struct{}, 1)}
	engine := granting()
	engine.introspect = func(context.Context, exchange.Inquiry) (exchange.Introspection, error) {
		return exchange.Introspection{}, errors.New("broken")
	}
	_, conn := dial(t, Config{Engine: engine, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if _, err := deputyv1.NewTokenExchangeServiceClient(conn).Introspect(t.Context(), &deputyv1.IntrospectRequest{}); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "reason=internal") {
		t.Errorf("the control: %s", text)
	}
}

type leaveKey struct{}

// TestUnauthenticatedCallsInTheLog: a flood of unauthenticated calls leaves 20 lines a second in
// the log, and the number of the others.
func TestUnauthenticatedCallsInTheLog(t *testing.T) {
	log := &logged{line: make(chan struct{}, 1)}
	at := time.Unix(1000, 0)
	var mu sync.Mutex
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return at }
	_, conn := dial(t, Config{Engine: granting(), Logger: slog.New(slog.NewTextHandler(log, nil)), Now: now})
	ask := func() {
		if _, err := deputyv1.NewTokenExchangeServiceClient(conn).Introspect(bare(t.Context()), &deputyv1.IntrospectRequest{}); !is(err, delegation.ClientUnauthenticated) {
			t.Fatal(err)
		}
	}
	for range 100 {
		ask()
	}
	if n := strings.Count(log.String(), "grpc call"); n != 20 {
		t.Errorf("%d lines for 100 calls", n)
	}
	mu.Lock()
	at = at.Add(time.Second)
	mu.Unlock()
	if ask(); !strings.Contains(log.String(), "left_out=80") {
		t.Error(log.String())
	}
}

// TestAuthenticatedCancellations: calls that an authenticated caller cancels do not count against
// its connection. In the control they do.
func TestAuthenticatedCancellations(t *testing.T) {
	for _, known := range []bool{true, false} {
		conn := &closing{}
		of := peers.NewConnection(conn)
		for range 2000 {
			ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{Addr: peerAddress{conn.RemoteAddr(), of}}))
			ctx, err := newOpenings(Waits{}.withDefaults(), nil).tap(ctx, &tap.Info{Header: metadata.Pairs("content-type", "application/grpc")})
			if err != nil || openingOf(ctx).refusal != nil {
				cancel()
				t.Fatal(err, openingOf(ctx).refusal)
			}
			if known {
				peers.Known(ctx)
			}
			call := openingOf(ctx)
			watched := call.watched() // so that the test calls it, in this goroutine
			cancel()
			if watched {
				call.ended(ctx)
			}
		}
		if conn.closed == known {
			t.Errorf("authenticated %t: closed %t", known, conn.closed)
		}
	}
}

// TestClientsOfAProxyThatReset: a client of a proxy that resets its calls is refused. The
// connection of the proxy stays open, and its other clients are served. The control is a connection
// of no proxy.
func TestClientsOfAProxyThatReset(t *testing.T) {
	for _, proxied := range []bool{true, false} {
		conn := &closing{}
		of := peers.NewConnection(conn)
		var proxies []netip.Prefix
		if proxied {
			proxies = []netip.Prefix{netip.MustParsePrefix(conn.RemoteAddr().(*net.TCPAddr).IP.String() + "/32")}
		}
		o := newOpenings(Waits{}.withDefaults(), proxies)
		ask := func(client string) (refused bool) {
			ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{Addr: peerAddress{conn.RemoteAddr(), of}}))
			ctx, err := o.tap(ctx, &tap.Info{Header: metadata.Pairs("content-type", "application/grpc", "x-forwarded-for", client)})
			if err != nil {
				t.Fatal(err)
			}
			call := openingOf(ctx)
			watched := call.watched() // so that the test calls it, in this goroutine
			cancel()
			if watched {
				call.ended(ctx)
			}
			return call.refusal != nil
		}
		refused := 0
		for range 3000 {
			if ask("198.51.100.1") {
				refused++
			}
		}
		if conn.closed == proxied || refused > 100 != proxied {
			t.Errorf("proxied %t: closed %t, %d refused", proxied, conn.closed, refused)
		}
		if ask("198.51.100.2") {
			t.Errorf("proxied %t: another client is refused", proxied)
		}
	}
}

type closing struct {
	elsewhere
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }
