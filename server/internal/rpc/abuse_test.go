package rpc

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/testservers"
)

// scene is a server on a real listener, with an honest client on a connection of its own.
type scene struct {
	t       *testing.T
	address string
	honest  deputyv1.TokenExchangeServiceClient
	running atomic.Int64 // calls that are in the engine
	most    atomic.Int64
	arrived chan struct{} // a call of hog
	// While hold is open, calls of hog stay in the engine, whatever their context returns.
	hold chan struct{}
}

const hog = "hog"

func newScene(t *testing.T, w Waits) *scene {
	t.Helper()
	s := &scene{t: t, hold: make(chan struct{}), arrived: make(chan struct{})}
	engine := granting()
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
	engine.watch = following(newLedgerFeed())
	server, err := New(Config{Engine: engine, Waits: w})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	s.address = listener.Addr().String()
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(authenticatedCall))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		release(s.hold)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	s.honest = deputyv1.NewTokenExchangeServiceClient(conn)
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

// isServed makes the honest client's call, which must succeed.
func (s *scene) isServed(when string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.honest.Introspect(ctx, &deputyv1.IntrospectRequest{Token: "t"}); err != nil {
		s.t.Errorf("%s: the honest client is not served: %v", when, err)
	}
}

func (s *scene) connect() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

func (s *scene) abuse(read bool) *testservers.Frames {
	s.t.Helper()
	return testservers.OpenFrames(s.t, s.connect(), read)
}

// cutOff waits until the server closes the connection.
func (s *scene) cutOff(f *testservers.Frames, why string) {
	s.t.Helper()
	select {
	case <-f.Closed():
	case <-time.After(20 * time.Second):
		s.t.Errorf("%s: the connection is still there", why)
	}
}

// call returns the header block of a call.
func call(f *testservers.Frames, method string, more ...string) []byte {
	return f.Block(append([]string{
		":method", "POST", ":scheme", "http", ":path", method, ":authority", "deputy.example", "content-type", "application/grpc", "te", "trailers",
	}, more...)...)
}

// hogging is the message of a call that stays in the engine.
var hogging = append([]byte{0, 0, 0, 0, 2 + byte(len(hog)), 0x0a, byte(len(hog))}, hog...)

var short = Waits{Connect: time.Second, Idle: time.Second, Ping: time.Second, Pong: time.Second}

func TestPingFlood(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	for f.WritePing(false, [8]byte{1}) == nil {
		select {
		case <-f.Closed():
		default:
			continue
		}
		break
	}
	s.cutOff(f, "a flood of pings")
	if f.GoAway() != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("it went away with %v", f.GoAway())
	}
	s.isServed("after")
}

// TestSettingsFlood: the server stops reading from a client that sends settings and reads no
// answers, once some answers wait. Only the buffers of the two kernels fill.
func TestSettingsFlood(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(false)
	if err := f.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	sent := 0
	for {
		if err := f.Conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if f.WriteSettings() != nil {
			break
		}
		if sent++; sent > 20_000_000 {
			t.Fatal("the server goes on reading")
		}
	}
	s.isServed("meanwhile")
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("after %d settings %d bytes are held", sent, grown)
	}
}

// TestRapidReset: calls that are reset at once (CVE-2023-44487) still run, but no more of them than
// one connection may have. A connection that continues is closed.
func TestRapidReset(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	// A server may stop reading.
	if err := f.Conn.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	reset := func(id uint32, data []byte) bool {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: call(f, deputyv1.TokenExchangeService_Introspect_FullMethodName, "authorization", "Bearer x"), EndHeaders: true}) == nil &&
			f.WriteData(id, true, data) == nil && f.WriteRSTStream(id, http2.ErrCodeCancel) == nil
	}
	for n := uint32(0); n < 1_000_000 && reset(2*n+1, hogging); n++ {
	}
	s.cutOff(f, "a flood of resets")
	for range 20 {
		s.isServed("meanwhile")
	}
	release(s.hold)
	if most := s.most.Load(); most > maxStreams+1 { // the other one is the honest client's
		t.Errorf("%d calls ran at once", most)
	}
	s.isServed("after")
}

// TestOrdinaryCancellations: a connection on which a client cancels 500 calls at once stays open.
func TestOrdinaryCancellations(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	for n := range uint32(500) {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: call(f, deputyv1.TokenExchangeService_Introspect_FullMethodName, "authorization", "Bearer x"), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteRSTStream(2*n+1, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	if !f.Until(func(came map[http2.FrameType]int, _ map[uint32]http2.ErrCode, _ map[uint32]bool) bool {
		return came[http2.FramePing] > 0
	}) {
		t.Error("the connection was ended")
	}
}

// TestContinuationFlood: a header without an end (CVE-2024-27316) ends the connection when it is
// longer than the bound.
func TestContinuationFlood(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: call(f, "/x"), EndHeaders: false}); err != nil {
		t.Fatal(err)
	}
	piece := f.Block("x", strings.Repeat("a", 8<<10))
	pieces := 0
	for f.WriteContinuation(1, false, piece) == nil {
		if pieces++; pieces > 100_000 {
			t.Fatal("it takes them all")
		}
	}
	s.cutOff(f, "a flood of continuations")
	s.isServed("after")
}

func TestLongHeaders(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	block := call(f, deputyv1.TokenExchangeService_Introspect_FullMethodName, "x", strings.Repeat("a", 12<<10), "y", strings.Repeat("a", 12<<10))
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:8<<10], EndHeaders: false}); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteContinuation(1, true, block[8<<10:]); err != nil {
		t.Fatal(err)
	}
	if !f.Until(isOver) {
		t.Log("the connection was ended")
	}
	if s.most.Load() != 1 {
		t.Error("the call reached the engine")
	}
	s.isServed("after")
}

// TestTooManyStreams: more calls than a connection may have at once are refused one by one. The
// connection stays open.
func TestTooManyStreams(t *testing.T) {
	s := newScene(t, Waits{})
	f := s.abuse(true)
	for i := range uint32(maxStreams + 10) {
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: call(f, deputyv1.TokenExchangeService_Introspect_FullMethodName, "authorization", "Bearer x"), EndHeaders: true})
		if err == nil {
			err = f.WriteData(2*i+1, true, hogging)
		}
		if err != nil {
			t.Fatal(err)
		}
		if i < maxStreams {
			<-s.arrived
		}
	}
	if !f.Until(func(_ map[http2.FrameType]int, resets map[uint32]http2.ErrCode, _ map[uint32]bool) bool {
		return len(resets) == 10
	}) {
		t.Error("the connection was ended")
	}
	s.isServed("meanwhile")
}

// TestSlowClients: a client that sends nothing, or never ends what it has begun, is cut off. The
// control is the same client of a server with ordinary deadlines, which is still connected.
func TestSlowClients(t *testing.T) {
	half := func(f *testservers.Frames) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: call(f, "/x"), EndHeaders: false})
	}
	for name, begin := range map[string]func(f *testservers.Frames) error{
		"nothing after the greeting": func(*testservers.Frames) error { return nil },
		"half a header":              half,
		"a header drop by drop": func(f *testservers.Frames) error {
			err := half(f)
			go func() {
				for f.WriteContinuation(1, false, nil) == nil {
					time.Sleep(20 * time.Millisecond) // the pace of a slow client
				}
			}()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a client that receives GOAWAY has some seconds to leave
			s, patient := newScene(t, short), newScene(t, Waits{})
			f, control := s.abuse(true), patient.abuse(true)
			for _, f := range []*testservers.Frames{control, f} {
				if err := begin(f); err != nil {
					t.Fatal(err)
				}
			}
			s.isServed("meanwhile")
			s.cutOff(f, name)
			select {
			case <-control.Closed():
				t.Error("the control was cut off too")
			default:
			}
		})
	}
	t.Run("not even a greeting", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, short)
		conn := s.connect()
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Error("the connection is still there")
		}
	})
}

// TestSilentCall: a call whose message does not come, or never ends, is ended, on every method, and
// its connection stays open. With ordinary deadlines the call is not ended.
func TestSilentCall(t *testing.T) {
	s := newScene(t, Waits{Message: time.Second})
	f, control := s.abuse(true), newScene(t, Waits{}).abuse(true)
	calls := make(map[uint32]string)
	for method, rule := range methods {
		if strings.HasPrefix(method, "/grpc.reflection.") {
			continue // not registered here, and a stream like the others
		}
		more := []string{}
		if rule != forAnyone {
			more = []string{"authorization", "Bearer x"}
		}
		for name, data := range map[string][]byte{"no message": nil, "half a message": {0, 0, 0, 0, 9, 1}} {
			id := uint32(2*len(calls) + 1)
			calls[id] = method + ", " + name
			for _, f := range []*testservers.Frames{control, f} {
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: call(f, method, more...), EndHeaders: true}); err != nil {
					t.Fatal(err)
				}
				if data != nil {
					if err := f.WriteData(id, false, data); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	for id, name := range calls {
		over := func(_ map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool {
			_, reset := resets[id]
			return reset || ended[id]
		}
		if !f.Until(over) {
			t.Fatalf("%s: the call goes on, or the connection was ended too", name)
		}
		if control.Now(over) {
			t.Errorf("%s: the control is over too", name)
		}
	}
	s.isServed("after")
}

func isOver(_ map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool {
	_, reset := resets[1]
	return reset || ended[1]
}

// TestDecompressionBomb: the server stops decompressing a small message when it exceeds the bound.
func TestDecompressionBomb(t *testing.T) {
	s := newScene(t, Waits{})
	_, err := s.honest.Introspect(t.Context(), &deputyv1.IntrospectRequest{Token: strings.Repeat("a", 8<<20)}, grpc.UseCompressor(gzip.Name), grpc.MaxCallSendMsgSize(16<<20))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("8 MiB in a small message: %v", err)
	}
	_, err = s.honest.Introspect(t.Context(), &deputyv1.IntrospectRequest{Token: strings.Repeat("a", 100)}, grpc.UseCompressor(gzip.Name))
	if err != nil {
		t.Errorf("an honest small message: %v", err)
	}
}

// TestSilentCallsMakeRoom: calls without a message beyond the bound of their address take the
// places of the oldest, which are reset. An honest client at the same address is served meanwhile.
func TestSilentCallsMakeRoom(t *testing.T) {
	s := newScene(t, Waits{Message: time.Hour}) // no call ends by itself
	var oldest *testservers.Frames
	for range 3 {
		f := s.abuse(true)
		for n := range uint32(1000) { // of the 2048 that one address may have
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: call(f, deputyv1.TokenExchangeService_Introspect_FullMethodName, "authorization", "Bearer x"), EndHeaders: true}); err != nil {
				break // too many of its calls were reset
			}
		}
		if oldest == nil {
			oldest = f
		}
		s.isServed("meanwhile")
	}
	reset := func(_ map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool {
		return len(resets)+len(ended) > 0
	}
	if !oldest.Until(reset) {
		s.cutOff(oldest, "calls that had to make room too often") // or all of its calls are there
	}
	s.isServed("after")
}
