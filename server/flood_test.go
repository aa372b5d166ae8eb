package server

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/testservers"
)

// maxFloodGrowth bounds the growth of this process's memory during a flood. The flooding client is
// a part of the process.
const maxFloodGrowth = 64 << 20

// flooder is a client that discards what it receives.
type flooder struct {
	*http2.Framer
	conn  net.Conn
	block bytes.Buffer
	coder *hpack.Encoder
	ended chan struct{}
}

func flood(t *testing.T, conn net.Conn) *flooder {
	t.Helper()
	f := &flooder{Framer: http2.NewFramer(conn, nil), conn: conn, ended: make(chan struct{})}
	f.coder = hpack.NewEncoder(&f.block)
	go func() {
		defer close(f.ended)
		discard(conn)
	}()
	t.Cleanup(func() { _ = conn.Close(); <-f.ended })
	return f
}

// greet returns false where the server has closed the connection.
func (f *flooder) greet() bool {
	_, err := f.conn.Write([]byte(http2.ClientPreface))
	return err == nil && f.WriteSettings() == nil
}

// begin opens stream n, counted from 0.
func (f *flooder) begin(n int, ended bool, headers ...string) bool {
	f.block.Reset()
	for pair := range slices.Chunk(headers, 2) {
		// A write to a buffer does not fail.
		_ = f.coder.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1]})
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*n + 1), BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: ended}) == nil
}

func calling(method string, more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "deputy.example", "content-type", "application/grpc", "te", "trailers"}, more...)
}

func dialTCP(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// floods open as much as they can and leave it open.
var floods = map[string]func(t *testing.T, i *instance){
	"health watches": func(t *testing.T, i *instance) {
		for range 40 {
			f := flood(t, dialTCP(t, i.GRPCAddr()))
			for n := range testservers.Campaign(2400, 300) {
				if n == 0 && !f.greet() || !f.begin(n, false, calling(healthpb.Health_Watch_FullMethodName)...) || f.WriteData(uint32(2*n+1), true, make([]byte, 5)) != nil {
					break
				}
			}
		}
	},
	"calls without a message": func(t *testing.T, i *instance) {
		for range 40 {
			f := flood(t, dialTCP(t, i.GRPCAddr()))
			for n := range testservers.Campaign(2400, 300) {
				if n == 0 && !f.greet() || !f.begin(n, false, calling(deputyv1.TokenExchangeService_Exchange_FullMethodName, "authorization", "Bearer x", "grpc-timeout", "1H")...) {
					break
				}
			}
		}
	},
	"messages that do not end": func(t *testing.T, i *instance) {
		piece := make([]byte, 16<<10)
		for range testservers.Campaign(20, 4) {
			f := flood(t, dialTCP(t, i.GRPCAddr()))
			f.greet()
			for n := range 100 {
				method := []string{deputyv1.TokenExchangeService_Exchange_FullMethodName, healthpb.Health_Watch_FullMethodName}[n%2]
				if !f.begin(n, false, calling(method)...) || f.WriteData(uint32(2*n+1), false, []byte{0, 0, 16, 0, 0}) != nil {
					break
				}
			}
			for n := range 100 * 60 { // round and round, up to 960 KiB of each MiB
				if f.WriteData(uint32(n%100*2+1), false, piece) != nil {
					break
				}
			}
		}
	},
	"messages in tiny frames": func(t *testing.T, i *instance) {
		for range testservers.Campaign(20, 4) {
			f, frames := flood(t, dialTCP(t, i.GRPCAddr())), new(bytes.Buffer)
			f.greet()
			f.begin(0, false, calling(deputyv1.TokenExchangeService_Exchange_FullMethodName)...)
			_ = f.WriteData(1, false, []byte{0, 0, 16, 0, 0})
			for range 1000 {
				_ = http2.NewFramer(frames, nil).WriteData(1, false, []byte{1})
			}
			for range 900 {
				if _, err := f.conn.Write(frames.Bytes()); err != nil {
					break
				}
			}
		}
	},
	"rapid reset": func(t *testing.T, i *instance) {
		for range 4 {
			f := flood(t, dialTCP(t, i.GRPCAddr()))
			for n := range testservers.Campaign(1_000_000, 20_000) {
				if n == 0 && !f.greet() || !f.begin(n, false, calling(deputyv1.TokenExchangeService_Exchange_FullMethodName)...) || f.WriteRSTStream(uint32(2*n+1), http2.ErrCodeCancel) != nil {
					break
				}
			}
			select {
			case <-f.ended:
			case <-time.After(20 * time.Second):
				t.Error("a connection that resets everything is not cut off")
			}
		}
	},
	"headers that do not end": func(t *testing.T, i *instance) {
		piece := bytes.Repeat([]byte{0}, 8<<10)
		for range testservers.Campaign(1000, 100) {
			f := flood(t, dialTCP(t, i.GRPCAddr()))
			if !f.greet() || f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: piece}) != nil {
				continue
			}
			for range 100 {
				if f.WriteContinuation(1, false, piece) != nil {
					break
				}
			}
		}
		for range testservers.Campaign(1000, 100) {
			f := flood(t, dialTCP(t, i.HTTPAddr()))
			_, _ = io.WriteString(f.conn, "GET /oauth2/jwks HTTP/1.1\r\nHost: d\r\nX-A: "+strings.Repeat("a", 15<<10))
		}
	},
	"connections that say nothing": func(t *testing.T, i *instance) {
		for range testservers.Campaign(2048, 400) {
			flood(t, dialTCP(t, i.GRPCAddr()))
		}
	},
	"connections that greet only": func(t *testing.T, i *instance) {
		for range testservers.Campaign(2048, 400) {
			flood(t, dialTCP(t, i.GRPCAddr())).greet()
		}
	},
	"forms that do not end": func(t *testing.T, i *instance) {
		for range testservers.Campaign(2048, 400) {
			f := flood(t, dialTCP(t, i.HTTPAddr()))
			_, _ = io.WriteString(f.conn, "POST /oauth2/token HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 65000\r\n\r\na="+strings.Repeat("a", 59<<10))
		}
	},
}

// TestFloods: a flood of unauthenticated calls grows memory by at most maxFloodGrowth, and a caller
// with a connection of its own at the same address is served meanwhile. The test logs the ratio of
// that caller's p99 with and without the flood.
func TestFloods(t *testing.T) {
	for name, begin := range floods {
		t.Run(name, func(t *testing.T) {
			site := newSite(t)
			site.text = strings.Replace(site.text, "limits: {allow_bearer: true}", "limits: {allow_bearer: true, caller_rate: 100000}", 1)
			i := site.start(t)
			quiet := i.bystander(t, testservers.Campaign(100, 20))
			before := held()
			began := time.Now()
			over := make(chan time.Duration)
			go func() { over <- i.bystander(t, testservers.Campaign(300, 40)) }()
			begin(t, i)
			took := time.Since(began)
			during := <-over
			grown := held() - before
			t.Logf("%s: %d KiB held, p99 of a bystander × %.1f, flooded for %v", name, grown>>10, float64(during)/float64(quiet), took.Round(time.Millisecond))
			if grown > maxFloodGrowth {
				t.Errorf("%d MiB are held", grown>>20)
			}
		})
	}
}

// held returns the bytes that this process has in use.
func held() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// bystander returns the p99 of exchanges, all of which must be granted. As the SDK does, it retries
// while a dependency is unavailable: the flood and the server share the processors of the test.
func (i *instance) bystander(t *testing.T, calls int) time.Duration {
	var took []time.Duration
	for range calls {
		began := time.Now()
		_, err := i.exchange(t.Context(), t)
		for status.Code(err) == codes.Unavailable && time.Since(began) < 20*time.Second {
			_, err = i.exchange(t.Context(), t)
		}
		if err != nil {
			t.Errorf("a bystander is not served: %v", err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// discard reads with a small buffer: thousands of it run at once.
func discard(conn net.Conn) {
	var buffer [64]byte
	for {
		if _, err := conn.Read(buffer[:]); err != nil {
			return
		}
	}
}
