package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"deputy.example/deputy/server/internal/panics"
	"deputy.example/deputy/server/internal/peers"
)

// handshakeTimeout bounds a handshake. A plaintext connection has the same time for its headers.
const handshakeTimeout = 5 * time.Second

// Secured wraps a listener whose clients use TLS. Accept returns connections after their
// handshakes. A connection that negotiated HTTP/2 is a *[tls.Conn], because net/http requires that
// type. Any other connection answers unreadable requests as a plaintext connection does, with HSTS
// where strict is set.
//
// Handshakes run concurrently, so that a slow one delays no other connection. Each counts as a
// connection of the listener below, which bounds their number.
func Secured(l net.Listener, config *tls.Config, strict bool, logger *slog.Logger) net.Listener {
	closing, closed := context.WithCancel(context.Background())
	return &secured{
		Listener: l, config: config, strict: strict, logger: logger, sampled: peers.NewSampler(time.Now),
		accepted: make(chan accepted), closing: closing, closed: closed,
	}
}

type secured struct {
	net.Listener
	config  *tls.Config
	strict  bool
	logger  *slog.Logger
	sampled *peers.Sampler

	begin    sync.Once
	accepted chan accepted
	closing  context.Context // until Close
	closed   context.CancelFunc
}

type accepted struct {
	conn net.Conn
	err  error
}

// Accept waits for the next connection with a completed handshake.
func (s *secured) Accept() (net.Conn, error) {
	s.begin.Do(func() { go s.accept() })
	select {
	case a := <-s.accepted:
		return a.conn, a.err
	case <-s.closing.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the listener and the running handshakes.
func (s *secured) Close() error {
	s.closed()
	return s.Listener.Close()
}

// accept begins the handshakes. After an error it waits until Accept has returned the error, so
// that it does not retry faster than the caller of Accept.
func (s *secured) accept() {
	for s.closing.Err() == nil {
		conn, err := s.Listener.Accept()
		if err == nil {
			go s.shake(conn)
		} else if s.hand(accepted{err: err}); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// hand passes a connection or an error to Accept. It returns false if the listener closes first.
func (s *secured) hand(a accepted) bool {
	select {
	case s.accepted <- a:
		return true
	case <-s.closing.Done():
		return false
	}
}

// shake runs one handshake. The connection is closed unless Accept returns it.
func (s *secured) shake(conn net.Conn) {
	taken := false
	defer func() {
		if p := recover(); p != nil { // as net/http does for its connections
			_ = panics.Caught(s.closing, s.logger, p, "in", "tls handshake")
		}
		if !taken {
			_ = conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(s.closing, handshakeTimeout)
	defer cancel()
	over := tls.Server(conn, s.config)
	if err := over.HandshakeContext(ctx); err != nil {
		s.sampled.Log(ctx, s.logger, slog.LevelWarn, "tls handshake failed",
			slog.String("peer", peers.Address(conn.RemoteAddr())), slog.String("error", err.Error()))
		s.answerPlaintext(conn, err)
		return
	}
	if over.ConnectionState().NegotiatedProtocol == "h2" {
		taken = s.hand(accepted{conn: over})
	} else {
		taken = s.hand(accepted{conn: securedReadable{readable: readable{Conn: over, strict: s.strict}, secured: over}})
	}
}

// answerPlaintext answers a client that sent a request without TLS. The answer has no HSTS, which
// clients must ignore without TLS (RFC 6797 section 7.2).
func (s *secured) answerPlaintext(conn net.Conn, err error) {
	var record tls.RecordHeaderError
	if !errors.As(err, &record) || record.Conn == nil {
		return
	}
	switch string(record.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		// The call fails only if the connection is closed.
		_ = conn.SetWriteDeadline(time.Now().Add(handshakeTimeout))
		_, _ = conn.Write(unreadableAnswer(http.StatusBadRequest, false))
	}
}
