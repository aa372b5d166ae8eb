package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/peers"
)

// syncLog is a log that several goroutines write to.
type syncLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}
func (l *syncLog) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.text.String() }

// TestRequestsMakeRoom: a request beyond the bound of its address takes the place of the oldest,
// which is ended. A request whose caller is authenticated is not ended.
func TestRequestsMakeRoom(t *testing.T) {
	begun := make(chan struct{}, 4)
	f := newFront(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			peers.Known(r.Context())
		}
		begun <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}), nil, slog.New(slog.DiscardHandler))
	f.open = peers.NewPlaces(2, 1, 1)
	site := httptest.NewUnstartedServer(nil)
	site.Config = NewServer(nil, nil, nil)
	site.Config.Handler, site.Config.ReadTimeout = f, time.Minute
	site.Start()
	defer site.Close()
	begin := func(path string) net.Conn {
		conn, err := net.Dial("tcp", site.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\na"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	one := begin("/known")
	<-begun
	two := begin("/")
	<-begun
	begin("/") // takes the place of the request before
	if err := ended(two, 20*time.Second); err != nil {
		t.Fatalf("the oldest request is still there: %v", err)
	}
	if _, err := io.WriteString(one, "a"); err != nil {
		t.Fatal(err)
	}
	status := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(one, status); err != nil || string(status) != "HTTP/1.1 200" {
		t.Errorf("a known caller: %q %v", status, err)
	}
}

// TestRequestsWithoutAPlace: a request on a connection without a state is refused.
func TestRequestsWithoutAPlace(t *testing.T) {
	f := newFront(http.NotFoundHandler(), nil, slog.New(slog.DiscardHandler))
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/oauth2/jwks", nil))
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(w.Body.String(), `"reason":"rate_limited"`) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// TestRapidResetOfQuickRequests: requests whose handlers return at once after a reset never
// accumulate, so net/http itself keeps the connection open. The front closes it.
func TestRapidResetOfQuickRequests(t *testing.T) {
	s := newScene(t, func(server *http.Server) {
		front := server.Handler.(*front)
		front.next = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/reset" {
				<-r.Context().Done()
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
		})
	})
	f := s.abuse()
	next := uint32(1)
	for batch := 1; batch <= 400; batch++ { // fewer at once than the bound of net/http itself
		for range 50 {
			block := f.Block(":method", "GET", ":scheme", "https", ":path", "/reset", ":authority", "d")
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: block, EndHeaders: true, EndStream: true})
			_ = f.WriteRSTStream(next, http2.ErrCodeCancel)
			next += 2
		}
		_ = f.WritePing(false, [8]byte{1}) // fails, like the others, when the connection is closed
		if !f.Until(func(came map[http2.FrameType]int, _ map[uint32]http2.ErrCode, _ map[uint32]bool) bool {
			return came[http2.FramePing] >= batch
		}) {
			break
		}
	}
	s.cutOff(f, "a flood of resets")
	s.isServed("after")
}

// TestAuthenticatedCancellations: requests that an authenticated caller cancels do not count
// against its connection. In the control they do.
func TestAuthenticatedCancellations(t *testing.T) {
	for _, known := range []bool{true, false} {
		conn := &closing{}
		of := peers.NewConnection(conn)
		for range 2000 {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), connectionKey{}, of))
			f := newFront(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if known {
					peers.Known(r.Context())
				}
				cancel()
			}), nil, slog.New(slog.DiscardHandler))
			f.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil))
		}
		if conn.closed == known {
			t.Errorf("authenticated %t: closed %t", known, conn.closed)
		}
	}
}

// TestClientsOfAProxyThatAbandon: a client of a proxy that abandons its requests is refused. The
// connection of the proxy stays open, and its other clients are served. The control is a connection
// of no proxy.
func TestClientsOfAProxyThatAbandon(t *testing.T) {
	for _, proxied := range []bool{true, false} {
		conn := &closing{}
		of := peers.NewConnection(conn)
		var proxies []netip.Prefix
		if proxied {
			proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}
		served := 0
		f := newFront(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }), proxies, slog.New(slog.DiscardHandler))
		ask := func(client string, stays bool) int {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), connectionKey{}, of))
			defer cancel()
			if !stays {
				cancel()
			}
			r, w := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil), httptest.NewRecorder()
			r.Header.Set("X-Forwarded-For", client)
			f.ServeHTTP(w, r)
			return w.Code
		}
		for range 3000 {
			ask("198.51.100.1", false)
		}
		if conn.closed == proxied || served >= 2900 == proxied {
			t.Errorf("proxied %t: closed %t, %d served", proxied, conn.closed, served)
		}
		if code := ask("198.51.100.2", true); code != http.StatusOK {
			t.Errorf("proxied %t: another client: %d", proxied, code)
		}
	}
}

type closing struct {
	net.Conn
	closed bool
}

func (c *closing) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} }
func (c *closing) Close() error         { c.closed = true; return nil }

// TestClientsThatHangUp: a request whose client has left is no error in the log. The control is the
// same failure for a client that waits.
func TestClientsThatHangUp(t *testing.T) {
	for _, gone := range []bool{true, false} {
		log := new(syncLog)
		engine := granting(t)
		ctx, hangUp := context.WithCancel(t.Context())
		defer hangUp()
		engine.introspect = func(ctx context.Context, _ exchange.Inquiry) (exchange.Introspection, error) {
			if gone {
				hangUp()
				<-ctx.Done()
				return exchange.Introspection{}, ctx.Err()
			}
			return exchange.Introspection{}, errors.New("what it waited for was cut off")
		}
		h := newHandler(t, Config{Engine: engine, Logger: slog.New(slog.NewTextHandler(log, nil))})
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/oauth2/introspect", strings.NewReader("token=t&client_assertion=a"))
		r.Header.Set("Content-Type", mediaForm)
		h.ServeHTTP(httptest.NewRecorder(), r)
		text := log.String()
		if strings.Contains(text, "level=ERROR") == gone || strings.Contains(text, "reason="+exchange.ReasonCanceled) != gone {
			t.Errorf("gone %t: %s", gone, text)
		}
	}
}

// TestUnauthenticatedCallsInTheLog: a flood of unauthenticated requests leaves 20 lines a second in
// the log, and the number of the others. Lines of net/http are sampled too, except panics.
func TestUnauthenticatedCallsInTheLog(t *testing.T) {
	log, at := new(syncLog), time.Unix(1000, 0)
	h := newHandler(t, Config{Engine: granting(t), Logger: slog.New(slog.NewTextHandler(log, nil)), Now: func() time.Time { return at }})
	ask := func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/nothing", nil)) }
	for range 100 {
		ask()
	}
	if n := strings.Count(log.String(), "http request"); n != 20 {
		t.Errorf("%d lines for 100 requests", n)
	}
	at = at.Add(time.Second)
	if ask(); !strings.Contains(log.String(), "left_out=80") {
		t.Error(log.String())
	}
	log = new(syncLog)
	own := NewServer(h, nil, slog.New(slog.NewTextHandler(log, nil))).ErrorLog
	for range 1000 {
		own.Print("http: TLS handshake error from 192.0.2.1:1: EOF")
	}
	own.Print("http: panic serving 192.0.2.1:1: boom")
	if n := strings.Count(log.String(), "handshake"); n < 20 || n > 200 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("%d lines of net/http: %s", n, log)
	}
}

// TestStrictTransport: HSTS is sent over TLS only (RFC 6797 section 7.2).
func TestStrictTransport(t *testing.T) {
	h := StrictTransport(http.NotFoundHandler())
	for _, secured := range []bool{true, false} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
		if r.TLS = nil; secured {
			r.TLS = new(tls.ConnectionState)
		}
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Strict-Transport-Security"); (got == "max-age=31536000") != secured || (got == "") == secured {
			t.Errorf("secured %t: %q", secured, got)
		}
	}
}
