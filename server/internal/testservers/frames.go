package testservers

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Frames is an HTTP/2 client that may break every rule: it writes what the test demands, frame by
// frame, and only records what comes back.
type Frames struct {
	*http2.Framer // to write with; one goroutine at a time
	Conn          net.Conn

	block  bytes.Buffer
	coder  *hpack.Encoder
	closed chan struct{}

	mu     sync.Mutex
	came   map[http2.FrameType]int
	goAway http2.ErrCode
	resets map[uint32]http2.ErrCode
	ended  map[uint32]bool
	news   chan struct{}
}

// OpenFrames greets over a connection, which ends with the test, and goes on reading it, or leaves
// it unread.
func OpenFrames(t testing.TB, conn net.Conn, read bool) *Frames {
	t.Helper()
	f := &Frames{
		Framer: http2.NewFramer(conn, conn), Conn: conn, closed: make(chan struct{}), news: make(chan struct{}),
		came: make(map[http2.FrameType]int), resets: make(map[uint32]http2.ErrCode), ended: make(map[uint32]bool),
	}
	f.coder = hpack.NewEncoder(&f.block)
	f.AllowIllegalWrites = true
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if read {
		go f.read()
	} else {
		close(f.closed)
	}
	t.Cleanup(func() {
		_ = conn.Close() // the server may have done it
		<-f.closed
	})
	return f
}

func (f *Frames) read() {
	defer close(f.closed)
	reader := http2.NewFramer(nil, f.Conn)
	for {
		frame, err := reader.ReadFrame()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.came[frame.Header().Type]++
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			f.goAway = max(f.goAway, frame.ErrCode)
		case *http2.RSTStreamFrame:
			f.resets[frame.StreamID] = frame.ErrCode
		case *http2.HeadersFrame:
			f.ended[frame.StreamID] = f.ended[frame.StreamID] || frame.StreamEnded()
		case *http2.DataFrame:
			f.ended[frame.StreamID] = f.ended[frame.StreamID] || frame.StreamEnded()
		}
		close(f.news)
		f.news = make(chan struct{})
		f.mu.Unlock()
	}
}

// Closed is closed when the server has ended the connection.
func (f *Frames) Closed() <-chan struct{} { return f.closed }

// GoAway is the worst error code of the server's GOAWAY frames.
func (f *Frames) GoAway() http2.ErrCode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.goAway
}

// A Condition is about what has come: the frames of each kind, the streams that were reset, and
// those that ended well.
type Condition func(came map[http2.FrameType]int, resets map[uint32]http2.ErrCode, ended map[uint32]bool) bool

// Now returns whether a condition is fulfilled.
func (f *Frames) Now(fulfilled Condition) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fulfilled(f.came, f.resets, f.ended)
}

// Until waits until a condition is fulfilled. It returns false if the connection ended before, or if
// half a minute was not enough.
func (f *Frames) Until(fulfilled Condition) bool {
	enough := time.After(30 * time.Second)
	for {
		f.mu.Lock()
		is, news := fulfilled(f.came, f.resets, f.ended), f.news
		f.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-news:
		case <-f.closed:
			return f.Now(fulfilled)
		case <-enough:
			return false
		}
	}
}

// Block encodes headers, given in turn by name and value.
func (f *Frames) Block(headers ...string) []byte {
	f.block.Reset()
	for i := 0; i+1 < len(headers); i += 2 {
		_ = f.coder.WriteField(hpack.HeaderField{Name: headers[i], Value: headers[i+1]}) // a buffer takes everything
	}
	return bytes.Clone(f.block.Bytes())
}
