package httpapi

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// Plaintext wraps a listener without TLS, so that a request that net/http cannot read gets an
// answer in the usual form ([readable]).
func Plaintext(l net.Listener) net.Listener { return plaintext{l} }

type plaintext struct{ net.Listener }

// Accept waits for the next connection.
func (l plaintext) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return readable{Conn: conn}, nil
}

// readable is a connection of HTTP/1.1. If net/http cannot read a request, or does not know its
// expectation, it answers as text or without a body, and does not forbid caches to keep the answer.
// On these connections the answer is JSON with no-store.
type readable struct {
	net.Conn
	strict bool // the answer has HSTS
}

// securedReadable is readable over TLS. net/http takes Request.TLS from its ConnectionState.
type securedReadable struct {
	readable
	secured *tls.Conn
}

// ConnectionState returns what the handshake negotiated, and the certificates of the client.
func (c securedReadable) ConnectionState() tls.ConnectionState { return c.secured.ConnectionState() }

// CloseWrite signals to the client that no more answers follow.
func (c securedReadable) CloseWrite() error { return c.secured.CloseWrite() }

// NetConn returns the connection below TLS.
func (c securedReadable) NetConn() net.Conn { return c.secured.NetConn() }

// unreadable follows the status line of an answer to a request that net/http could not read. An
// answer of a handler has more headers.
var unreadable = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write replaces such an answer, which net/http writes in one call.
func (c readable) Write(p []byte) (int, error) {
	code, is := unanswered(p)
	if !is {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(unreadableAnswer(code, c.strict)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// unanswered returns the status of an answer that no handler gave. No handler answers with 417.
func unanswered(p []byte) (code int, is bool) {
	line, _, _ := bytes.Cut(p, []byte("\r\n"))
	words := bytes.SplitN(line, []byte(" "), 3)
	if len(words) != 3 || string(words[0]) != "HTTP/1.1" {
		return 0, false
	}
	code, err := strconv.Atoi(string(words[1]))
	if err != nil {
		return 0, false
	}
	withoutBody := code == http.StatusExpectationFailed && bytes.HasSuffix(p, []byte("\r\nContent-Length: 0\r\n\r\n"))
	return code, withoutBody || bytes.HasPrefix(p[len(line):], unreadable)
}

// unreadableAnswer has no reason, because no reason has these codes. It repeats nothing of the
// request.
func unreadableAnswer(code int, strict bool) []byte {
	body, _ := json.Marshal(map[string]string{ // a map of strings always encodes
		"error":             "invalid_request",
		"error_description": "the request could not be read: " + http.StatusText(code),
	})
	hsts := ""
	if strict {
		hsts = "Strict-Transport-Security: " + strictTransport + "\r\n"
	}
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nPragma: no-cache\r\n"+
		"X-Content-Type-Options: nosniff\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, http.StatusText(code), hsts, len(body), body)
}
