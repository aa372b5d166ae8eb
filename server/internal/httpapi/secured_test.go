package httpapi

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/server/internal/token/certtest"
)

// pipes is a listener whose connections a test makes. A nil connection is a temporary failure.
type pipes struct {
	come   chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{come: make(chan net.Conn), closed: make(chan struct{})} }

var errPassing = errors.New("too many open files")

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.come:
		if conn == nil {
			return nil, errPassing
		}
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// connect returns the client's end of a connection that the listener accepted.
func (p *pipes) connect(t *testing.T) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { _ = here.Close() })
	p.come <- there
	return here
}

// TestSlowHandshakes: handshakes that stop delay no other connection, and end after five seconds.
func TestSlowHandshakes(t *testing.T) {
	certificate := certtest.SelfSigned(t, certtest.DNS("localhost"))
	synctest.Test(t, func(t *testing.T) {
		below := newPipes()
		l := Secured(below, &tls.Config{Certificates: []tls.Certificate{certificate}}, true, slog.New(slog.DiscardHandler))
		server := NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.TLS == nil || !r.TLS.HandshakeComplete {
				w.WriteHeader(http.StatusTeapot)
			}
		}), nil, nil)
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()

		began := time.Now()
		silent, slow := below.connect(t), below.connect(t)
		trickled := make(chan error, 1)
		go func() {
			// The bytes begin a ClientHello.
			for _, b := range []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") {
				if _, err := slow.Write([]byte{b}); err != nil {
					trickled <- err
					return
				}
				time.Sleep(time.Second)
			}
			trickled <- nil
		}()
		for range 3 {
			conn := tls.Client(below.connect(t), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			go func() { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n") }()
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatalf("beside slow handshakes: %v, %v", response, err)
			}
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("other connections waited %s", d)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != handshakeTimeout {
			t.Errorf("a silent handshake ended after %s: %v", time.Since(began), err)
		}
		if err := <-trickled; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("a slow handshake: %v", err)
		}

		silent = below.connect(t)
		synctest.Wait()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// TestSecuredListener: a connection with a completed handshake is closed when the listener closes.
// Errors of the listener below reach Accept, and Accept continues after them.
func TestSecuredListener(t *testing.T) {
	certificate := certtest.SelfSigned(t, certtest.DNS("localhost"))
	synctest.Test(t, func(t *testing.T) {
		log := new(syncLog)
		panics := false
		below := newPipes()
		l := Secured(below, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if panics {
				panic("no certificate")
			}
			return &certificate, nil
		}}, true, slog.New(slog.NewTextHandler(log, nil)))
		go func() { below.come <- nil }()
		if _, err := l.Accept(); !errors.Is(err, errPassing) {
			t.Errorf("a failure below: %v", err)
		}
		shake := func() net.Conn {
			conn := below.connect(t)
			over := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			go func() { _, _ = over.Write([]byte("x")) }()
			return conn
		}
		shake()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1)
		if _, err := conn.Read(got); err != nil || got[0] != 'x' {
			t.Errorf("%q, %v", got, err)
		}
		_ = conn.Close()

		panics = true
		shake()
		synctest.Wait()
		if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "msg=panic") {
			t.Errorf("a panic: %s", log)
		}
		panics = false

		late := shake()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if _, err := io.Copy(io.Discard, late); err != nil {
			t.Errorf("a connection that was not accepted: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestFailedHandshakesAreSampled: a failed handshake is a line of the log, at most twenty a second.
func TestFailedHandshakesAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(syncLog)
		below := newPipes()
		l := Secured(below, &tls.Config{}, true, slog.New(slog.NewTextHandler(log, nil)))
		accepted := make(chan error, 1)
		go func() { _, err := l.Accept(); accepted <- err }()
		for range 100 {
			_ = below.connect(t).Close()
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "tls handshake failed"); n != 20 {
			t.Errorf("%d lines for 100 handshakes: %s", n, log)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
