package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/server/internal/peers"
)

// maxConnections bounds the connections of one listener. Each connection costs about 100 KB before
// its peer is authenticated. Clients of gRPC share one connection. Each verifier has one of its
// own.
const maxConnections = 4096

// crowd is a listener that bounds the number of its connections. One address has at most half of
// them, so that no single client excludes all others. A connection beyond the bound is closed at
// once, so that its client tries another instance.
//
// The clients of a proxy have one address. They share one half, and the proxy has bounds of its
// own.
type crowd struct {
	net.Listener
	most    int
	refused prometheus.Counter

	mu   sync.Mutex // guards the fields below
	here int
	from map[string]int // by address
}

func newCrowd(l net.Listener, most int, refused prometheus.Counter) *crowd {
	return &crowd{Listener: l, most: most, refused: refused, from: make(map[string]int)}
}

// Accept waits for the next connection within the bounds.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := peers.Address(conn.RemoteAddr())
		if c.enter(address) {
			return &guest{Conn: conn, leave: sync.OnceFunc(func() { c.leave(address) })}, nil
		}
		c.refused.Inc()
		_ = conn.Close() // it was never used
	}
}

func (c *crowd) enter(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.here >= c.most || c.from[address] >= (c.most+1)/2 {
		return false
	}
	c.here++
	c.from[address]++
	return true
}

func (c *crowd) leave(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.here--
	if c.from[address]--; c.from[address] == 0 {
		delete(c.from, address)
	}
}

// guest is a connection that frees its place when it closes.
type guest struct {
	net.Conn
	leave func()
}

func (v *guest) Close() error {
	v.leave()
	return v.Conn.Close()
}
