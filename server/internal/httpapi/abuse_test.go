package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/testservers"
)

// scene is a server on a real listener with TLS, which offers both versions of HTTP, with an honest
// client on a connection of its own.
type scene struct {
	t       *testing.T
	server  *http.Server
	address string
	honest  *http.Client
	client  *tls.Config
	running atomic.Int64 // requests in the engine
	most    atomic.Int64
	arrived chan struct{} // a request of hog
	hold    chan struct{}
}

const hog = "hog"

// newScene changes the server's deadlines before it serves.
func newScene(t *testing.T, change func(*http.Server)) *scene {
	t.Helper()
	s := &scene{t: t, hold: make(chan struct{}), arrived: make(chan struct{})}
	engine := granting(t)
	engine.introspect = func(_ context.Context, q exchange.Inquiry) (exchange.Introspection, error) {
		s.most.Store(max(s.most.Load(), s.running.Add(1)))
		defer s.running.Add(-1)
		if q.Token == hog {
			select {
			case s.arrived <- struct{}{}:
			case <-s.hold:
			}
			<-s.hold
		}
		return exchange.Introspection{}, nil
	}
	s.server = NewServer(newHandler(t, Config{Engine: engine}), nil, nil)
	change(s.server)
	certified := httptest.NewUnstartedServer(nil) // for its certificate
	certified.EnableHTTP2 = true
	certified.StartTLS()
	defer certified.Close()
	s.client = certified.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	served := make(chan error, 1)
	go func() {
		served <- s.server.Serve(tls.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: certified.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"},
		}))
	}()
	s.honest = &http.Client{Transport: &http.Transport{TLSClientConfig: s.client.Clone(), ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
	t.Cleanup(func() {
		release(s.hold)
		s.honest.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		// Shutdown waits. By now every client that was cut off has left.
		if err := s.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	s.isServed("before")
	return s
}

func release(hold chan struct{}) {
	select {
	case <-hold:
	default:
		close(hold)
	}
}

func (s *scene) isServed(when string) {
	s.t.Helper()
	response, err := s.honest.Post("https://"+s.address+"/oauth2/introspect", mediaForm, strings.NewReader("token=t&client_assertion=a"))
	if err != nil {
		s.t.Errorf("%s: the honest client is not served: %v", when, err)
		return
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
		s.t.Errorf("%s: %s %v", when, response.Proto, response.Status)
	}
}

// connect opens a connection with one version of HTTP.
func (s *scene) connect(protocol string) net.Conn {
	s.t.Helper()
	config := s.client.Clone()
	config.NextProtos = []string{protocol}
	conn, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

func (s *scene) abuse() *testservers.Frames {
	s.t.Helper()
	return testservers.OpenFrames(s.t, s.connect("h2"), true)
}

func (s *scene) cutOff(f *testservers.Frames, why string) {
	s.t.Helper()
	select {
	case <-f.Closed():
	case <-time.After(20 * time.Second):
		s.t.Errorf("%s: the connection is still there", why)
	}
}

func ordinary(*http.Server) {}

// hurried shortens every deadline that is set. A deadline that is not set stays unset.
func hurried(s *http.Server) {
	const soon = time.Second
	s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = min(soon, s.ReadHeaderTimeout), min(soon, s.ReadTimeout), min(soon, s.IdleTimeout)
}

const hogging = "token=hog&client_assertion=a"

func request(f *testservers.Frames, more ...string) []byte {
	return f.Block(append([]string{":method", "POST", ":scheme", "https", ":path", "/oauth2/introspect", ":authority", "deputy.example", "content-type", mediaForm}, more...)...)
}

// TestRapidReset: of requests that are reset at once (CVE-2023-44487), no more run than one
// connection may have. A connection that continues is closed.
func TestRapidReset(t *testing.T) {
	s := newScene(t, ordinary)
	f := s.abuse()
	for i := range uint32(20 * maxStreams) {
		id := 2*i + 1
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: request(f), EndHeaders: true}) != nil ||
			f.WriteData(id, true, []byte(hogging)) != nil {
			break
		}
		if i < maxStreams {
			<-s.arrived
		}
		if f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	s.cutOff(f, "a flood of resets")
	if f.GoAway() != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("it went away with %v", f.GoAway())
	}
	s.isServed("meanwhile")
	if most := s.most.Load(); most > maxStreams+1 { // the other one is the honest client's
		t.Errorf("%d requests ran at once", most)
	}
}

// TestContinuationFlood: a header without an end (CVE-2024-27316) ends the connection.
func TestContinuationFlood(t *testing.T) {
	s := newScene(t, ordinary)
	f := s.abuse()
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request(f)}); err != nil {
		t.Fatal(err)
	}
	piece := f.Block("x", strings.Repeat("a", 8<<10))
	for pieces := 0; f.WriteContinuation(1, false, piece) == nil; pieces++ {
		if pieces > 100_000 {
			t.Fatal("it takes them all")
		}
	}
	s.cutOff(f, "a flood of continuations")
	s.isServed("after")
}

// TestTooManyStreams: more requests than a connection may have at once are refused and reach no
// handler.
func TestTooManyStreams(t *testing.T) {
	s := newScene(t, ordinary)
	f := s.abuse()
	for i := range uint32(maxStreams + 10) {
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: request(f), EndHeaders: true}) != nil {
			break // the server may have ended the connection
		}
	}
	if !f.Until(func(came map[http2.FrameType]int, resets map[uint32]http2.ErrCode, _ map[uint32]bool) bool {
		return len(resets) == 10 || came[http2.FrameGoAway] > 0
	}) {
		t.Log("the connection was ended")
	}
	s.isServed("after")
}

// TestControlFrameFlood: settings and pings do not count as use of a connection. If the client
// reads no answers, the server stops reading.
func TestControlFrameFlood(t *testing.T) {
	for name, write := range map[string]func(f *testservers.Frames) error{
		"settings": func(f *testservers.Frames) error { return f.WriteSettings() },
		"pings":    func(f *testservers.Frames) error { return f.WritePing(false, [8]byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, hurried)
			f := testservers.OpenFrames(t, s.connect("h2"), false)
			for sent := 0; ; sent++ {
				if err := f.Conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if write(f) != nil {
					break
				}
				if sent > 20_000_000 {
					t.Fatal("the server goes on reading")
				}
			}
			s.isServed("after")
		})
	}
}

// TestSlowClients: a client that does not end what it has begun is cut off, in both versions, and
// so is a client that begins nothing. The control is the same client of a server with ordinary
// deadlines, which is not cut off in the same time.
func TestSlowClients(t *testing.T) {
	for name, begin := range map[string]string{
		"nothing":       "",
		"half a header": "POST /oauth2/introspect HTTP/1.1\r\nHost: deputy.example\r\nX-A: ",
		"half a body":   "POST /oauth2/introspect HTTP/1.1\r\nHost: deputy.example\r\nContent-Type: " + mediaForm + "\r\nContent-Length: 100\r\n\r\ntoken=",
		"idle":          "GET /oauth2/jwks HTTP/1.1\r\nHost: deputy.example\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, patient := newScene(t, hurried), newScene(t, ordinary)
			control := patient.connect("http/1.1")
			conn := s.connect("http/1.1")
			defer conn.Close()
			defer control.Close()
			for _, c := range []net.Conn{control, conn} {
				if _, err := io.WriteString(c, begin); err != nil {
					t.Fatal(err)
				}
			}
			s.isServed("meanwhile")
			if err := ended(conn, 20*time.Second); err != nil {
				t.Error(err)
			}
			if ended(control, time.Millisecond) == nil {
				t.Error("the control was cut off too")
			}
		})
	}
	for name, begin := range map[string]func(f *testservers.Frames) error{
		"HTTP/2, nothing": func(*testservers.Frames) error { return nil },
		"HTTP/2, half a body": func(f *testservers.Frames) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: request(f), EndHeaders: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, hurried)
			f := s.abuse()
			_ = begin(f) // a slow machine may be cut off before
			s.isServed("meanwhile")
			// Either the request ends, or the whole connection does.
			if !f.Until(func(came map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool {
				_, reset := resets[1]
				return reset || ended[1] || came[http2.FrameGoAway] > 0
			}) {
				s.cutOff(f, name)
			}
		})
	}
}

// ended reads until the connection ends. The error is nil if it ended in time.
func ended(conn net.Conn, within time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		if timeout, is := err.(net.Error); is && timeout.Timeout() {
			return fmt.Errorf("the connection is still there: %w", err)
		}
	}
	return nil
}

func TestLongHeaders(t *testing.T) {
	s := newScene(t, ordinary)
	conn := s.connect("http/1.1")
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, "GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nX-A: "+strings.Repeat("a", 64<<10))
	}()
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 431" {
		t.Errorf("%q %v", answer, err)
	}
	f := s.abuse()
	block := request(f, "x", strings.Repeat("a", 12<<10), "y", strings.Repeat("a", 12<<10))
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:8<<10]}); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteContinuation(1, true, block[8<<10:]); err != nil {
		t.Fatal(err)
	}
	f.Until(func(_ map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool {
		_, reset := resets[1]
		return reset || ended[1]
	})
	if s.most.Load() != 1 {
		t.Error("it reached the engine")
	}
	s.isServed("after")
}

// TestServerIsBounded: every phase and every size has its bound.
func TestServerIsBounded(t *testing.T) {
	s := NewServer(http.NotFoundHandler(), nil, nil)
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("%+v", s)
	}
	if s.Protocols.UnencryptedHTTP2() {
		t.Error("HTTP/2 without TLS")
	}
	h2 := s.HTTP2
	if h2 == nil || h2.MaxConcurrentStreams <= 0 || h2.MaxReadFrameSize <= 0 || h2.MaxReceiveBufferPerStream <= 0 ||
		h2.MaxReceiveBufferPerConnection <= 0 || h2.MaxDecoderHeaderTableSize <= 0 || h2.SendPingTimeout <= 0 || h2.PingTimeout <= 0 || h2.WriteByteTimeout <= 0 {
		t.Errorf("%+v", h2)
	}
}
