package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/server/internal/peers"
)

// maxConnections bounds the connections of one listener. Each costs some 100 KB before anybody has been
// authenticated; clients of gRPC share one, and verifiers have one each.
const maxConnections = 4096

// crowd is a listener that takes only so many connections at once, and no more than half of them from
// one address, so that no single client keeps all others out. What is beyond is closed at once, and not
// left to wait: its client goes elsewhere.
//
// Behind a proxy all clients have one address. They share one half, and the proxy has bounds of its own.
type crowd struct {
	net.Listener
	most    int
	refused prometheus.Counter

	mu   sync.Mutex // guards what follows
	here int
	from map[string]int // by address
}

func newCrowd(l net.Listener, most int, refused prometheus.Counter) *crowd {
	return &crowd{Listener: l, most: most, refused: refused, from: make(map[string]int)}
}

// Accept waits for the next connection that there is room for.
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

// guest is a connection that gives its place back when it closes.
type guest struct {
	net.Conn
	leave func()
}

func (v *guest) Close() error {
	v.leave()
	return v.Conn.Close()
}
