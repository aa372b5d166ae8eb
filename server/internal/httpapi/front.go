package httpapi

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/peers"
)

// front bounds the requests of unauthenticated peers at one listener, for all of its endpoints.
type front struct {
	next    http.Handler
	clients *peers.Clients
	open    *peers.Places // until the caller is authenticated
	sampled *peers.Sampler
	logger  *slog.Logger
}

func newFront(next http.Handler, proxies []netip.Prefix, logger *slog.Logger) *front {
	return &front{
		next: next, clients: peers.NewClients(proxies), open: peers.NewPlaces(512, 256, maxStreams), sampled: peers.NewSampler(time.Now), logger: logger,
	}
}

type connectionKey struct{}

// connect puts the state of a connection into the context of its requests. The state closes the
// connection below TLS, because a close of TLS waits for the peer.
func connect(ctx context.Context, conn net.Conn) context.Context {
	if secured, is := conn.(interface{ NetConn() net.Conn }); is {
		conn = secured.NetConn()
	}
	return context.WithValue(ctx, connectionKey{}, peers.NewConnection(conn))
}

var tooMany = &delegation.Error{
	Reason: delegation.RateLimited, RetryAfter: time.Second,
	Description: "too many requests of unauthenticated callers are open, on this connection, from this address or in all: try again later",
}

// ServeHTTP answers one request.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	connection, known := r.Context().Value(connectionKey{}).(*peers.Connection)
	current := &running{control: http.NewResponseController(w)}
	var place *peers.Place
	client := f.clients.Of(connection, r.Header.Values("X-Forwarded-For"))
	if known && !client.Spent() {
		place = f.open.Enter(client, func() {
			current.cut()
			client.Crowded()
		})
	}
	if place == nil {
		writeError(w, r, &endpoint{tenant: &Tenant{}}, tooMany)
		f.sampled.Log(r.Context(), f.logger, slog.LevelInfo, "http request", slog.String("method", knownMethod(r.Method)),
			slog.Int("status", http.StatusTooManyRequests), slog.String("reason", string(delegation.RateLimited)))
		return
	}
	began := time.Now()
	defer current.end()
	defer place.Leave()
	f.next.ServeHTTP(w, r.WithContext(peers.Holding(r.Context(), place)))
	if context.Cause(r.Context()) == context.Canceled && !place.Authenticated() {
		client.Abandoned(began)
	}
}

// running is a request that another goroutine can end while its handler runs.
type running struct {
	mu      sync.Mutex
	control *http.ResponseController // nil after the handler returned
}

// cut ends the reads and writes of the request.
func (r *running) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.control != nil {
		_ = r.control.SetReadDeadline(time.Unix(1, 0)) // fails only if the connection is closed
		_ = r.control.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (r *running) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.control = nil
}

// Write logs a line of net/http: a connection that failed, or a panic.
func (f *front) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if strings.HasPrefix(text, "http: panic serving") {
		f.logger.Error(text)
	} else {
		f.sampled.Log(context.Background(), f.logger, slog.LevelWarn, text)
	}
	return len(line), nil
}

// errorLog returns the log of net/http.
func (f *front) errorLog() *log.Logger { return log.New(f, "", 0) }

// strictTransport is one year. It covers all ports of the host, and no subdomains.
const strictTransport = "max-age=31536000"

// StrictTransport adds HSTS (RFC 6797) to answers over TLS.
func StrictTransport(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			w.Header().Set("Strict-Transport-Security", strictTransport)
		}
		next.ServeHTTP(w, r)
	})
}
