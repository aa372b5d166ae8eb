package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// Plaintext wraps a listener without TLS. net/http itself answers a request that it cannot read, as
// text that does not forbid caches to keep it. On these connections the answer is JSON with
// no-store. Over TLS it stays text, because net/http accepts no wrapper of a *tls.Conn.
func Plaintext(l net.Listener) net.Listener { return plaintext{l} }

type plaintext struct{ net.Listener }

// Accept waits for the next connection.
func (l plaintext) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return plainConn{conn}, nil
}

type plainConn struct{ net.Conn }

// unreadable follows the first line of such an answer. An answer of a handler has more headers.
var unreadable = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write replaces the answer to an unreadable request, which net/http writes in one call.
func (c plainConn) Write(p []byte) (int, error) {
	line, _, _ := bytes.Cut(p, []byte("\r\n"))
	words := bytes.SplitN(line, []byte(" "), 3)
	if !bytes.HasPrefix(p[len(line):], unreadable) || len(words) != 3 || string(words[0]) != "HTTP/1.1" {
		return c.Conn.Write(p)
	}
	code, err := strconv.Atoi(string(words[1]))
	if err != nil {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(unreadableAnswer(code)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// unreadableAnswer has no reason, because no reason has these codes. It repeats nothing of the
// request.
func unreadableAnswer(code int) []byte {
	body, _ := json.Marshal(map[string]string{ // a map of texts always encodes
		"error":             "invalid_request",
		"error_description": "the request could not be read: " + http.StatusText(code),
	})
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nPragma: no-cache\r\n"+
		"X-Content-Type-Options: nosniff\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", code, http.StatusText(code), len(body), body)
}
