package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
)

// link is a TCP proxy in front of one server, which simulates faults of a network.
type link struct {
	address string // host:port, for clients
	server  string
	work    sync.WaitGroup

	mu    sync.Mutex
	now   weather
	pairs map[*pair]bool
}

// weather is the fault that a link simulates. The zero value is no fault.
type weather struct {
	refuse  bool          // connections are closed, and so are new ones
	swallow bool          // data is lost, and so is all later data on its connection
	hold    bool          // data waits until the weather changes
	delay   time.Duration // data of the server arrives so much later
	trickle time.Duration // each byte of the server takes so long
}

// pair is a client's connection and the link's connection to the server.
type pair struct {
	client, server net.Conn
	lost           bool // guarded by link.mu
}

func (p *pair) close() { _, _ = p.client.Close(), p.server.Close() }

func newLink(t testing.TB, server string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l := &link{address: listener.Addr().String(), server: server, pairs: make(map[*pair]bool)}
	l.work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.connect(conn)
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		l.is(weather{refuse: true})
		l.work.Wait()
	})
	return l
}

func (l *link) connect(client net.Conn) {
	server, err := net.Dial("tcp", l.server)
	if err != nil {
		_ = client.Close()
		return
	}
	p := &pair{client: client, server: server}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now.refuse {
		p.close()
		return
	}
	l.pairs[p] = true
	var both sync.WaitGroup
	both.Go(func() { l.carry(p, client, server) })
	both.Go(func() { l.carry(p, server, client) })
	l.work.Go(func() {
		both.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pairs, p)
	})
}

// is changes the weather.
func (l *link) is(w weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = w
	for p := range l.pairs {
		if w.refuse {
			p.close()
		}
		p.lost = p.lost || w.swallow
	}
}

// over returns the weather on one connection, and whether data on it is lost.
func (l *link) over(p *pair) (w weather, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.lost = p.lost || l.now.swallow
	return l.now, p.lost
}

// carry forwards data from one end to the other. It never stops reading, so that the sender does
// not notice the weather.
func (l *link) carry(p *pair, from, to net.Conn) {
	type parcel struct {
		data []byte
		came time.Time
	}
	parcels := make(chan parcel, 1<<14)
	l.work.Go(func() {
		defer close(parcels)
		for buffer := make([]byte, 32<<10); ; {
			n, err := from.Read(buffer)
			if n > 0 {
				parcels <- parcel{bytes.Clone(buffer[:n]), time.Now()}
			}
			if err != nil {
				return
			}
		}
	})
	defer p.close()
	for parcel := range parcels {
		for len(parcel.data) > 0 {
			w, lost := l.over(p)
			wait, n := time.Duration(0), len(parcel.data)
			switch {
			case lost:
				parcel.data = nil
				continue
			case w.hold, from == p.server && time.Since(parcel.came) < w.delay:
				wait, n = 5*time.Millisecond, 0
			case from == p.server && w.trickle > 0:
				wait, n = w.trickle, 1
			}
			if wait > 0 {
				<-time.After(wait)
			}
			if _, err := to.Write(parcel.data[:n]); err != nil {
				parcel.data = nil // the closed connection ends the reader
				p.close()
				continue
			}
			parcel.data = parcel.data[n:]
		}
	}
}

// meddler is a gRPC server between a verifier and Deputy, which changes Deputy's messages.
type meddler struct {
	deputyv1.UnimplementedRevocationServiceServer
	address string
	deputy  deputyv1.RevocationServiceClient

	mu   sync.Mutex
	edit func(*watched) []*watched
}

type watched = deputyv1.WatchRevocationsResponse

func newMeddler(t testing.TB, i *instance) *meddler {
	t.Helper()
	conn, err := grpc.NewClient(i.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	m := &meddler{address: listener.Addr().String(), deputy: deputyv1.NewRevocationServiceClient(conn)}
	s := grpc.NewServer()
	deputyv1.RegisterRevocationServiceServer(s, m)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(listener) }()
	t.Cleanup(func() {
		s.Stop()
		check(t, <-ended)
		check(t, conn.Close())
	})
	return m
}

// meddles changes every message from now on. nil changes none.
func (m *meddler) meddles(edit func(*watched) []*watched) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.edit = edit
}

func (m *meddler) edited(message *watched) []*watched {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.edit == nil {
		return []*watched{message}
	}
	return m.edit(message)
}

// WatchRevocations forwards the verifier's credential.
func (m *meddler) WatchRevocations(verifier grpc.BidiStreamingServer[deputyv1.WatchRevocationsRequest, watched]) error {
	in, _ := metadata.FromIncomingContext(verifier.Context())
	ctx := metadata.NewOutgoingContext(verifier.Context(), metadata.MD{"authorization": in.Get("authorization")})
	deputy, err := m.deputy.WatchRevocations(ctx)
	if err != nil {
		return err
	}
	go func() { // ends with the verifier's stream
		for {
			request, err := verifier.Recv()
			if err != nil || deputy.Send(request) != nil {
				return
			}
		}
	}()
	for {
		message, err := deputy.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, edited := range m.edited(message) {
			if err := verifier.Send(edited); err != nil {
				return err
			}
		}
	}
}
