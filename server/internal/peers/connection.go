// Package peers bounds what unauthenticated peers make an instance hold, do and log: places for
// open calls, by connection, by address and in all; a rate at which one connection wastes calls;
// and a rate of log lines.
//
// It knows addresses and connections. Methods, credentials and answers belong to the fronts.
package peers

import (
	"net"
	"time"

	"golang.org/x/time/rate"
)

// Connection is one connection of a peer, or one client of a proxy ([Clients]).
type Connection struct {
	conn    net.Conn // nil for a client of a proxy
	address string
	wasted  *rate.Limiter

	read, last int // bytes, in all and at last, that Unfinished was told
}

// A connection may waste wastedAtOnce calls, and then wastedPerSecond more each second. A call that
// its client resets counts once if it was rapid: the client waited for a call that lasted longer. A
// call that found no place, or lost it, counts crowdedCounts times.
const (
	wastedAtOnce    = 1000
	wastedPerSecond = 100
	crowdedCounts   = 4
	rapid           = time.Second
)

// NewConnection returns the state of a connection. Call it once for each connection.
func NewConnection(conn net.Conn) *Connection {
	return &Connection{
		conn: conn, address: Address(conn.RemoteAddr()), wasted: rate.NewLimiter(wastedPerSecond, wastedAtOnce),
	}
}

// Abandoned counts a call that the peer ended before its answer, if that was soon after the call
// began (HTTP/2 rapid reset, CVE-2023-44487).
func (c *Connection) Abandoned(began time.Time) {
	if time.Since(began) < rapid {
		c.waste(1)
	}
}

// Crowded counts a call that found no place, or lost it.
func (c *Connection) Crowded() { c.waste(crowdedCounts) }

// waste closes the connection that exceeds its bound. A client of a proxy is [Connection.Spent].
func (c *Connection) waste(n int) {
	if !c.wasted.AllowN(time.Now(), n) && c.conn != nil {
		_ = c.conn.Close() // nothing more is read from it
	}
}

// Spent reports whether a client of a proxy has exceeded its bound, so that its calls are refused
// until the rate allows more. The connection of the proxy carries the calls of others too.
func (c *Connection) Spent() bool { return c.conn == nil && c.wasted.Tokens() < crowdedCounts }

// Address returns a peer's address without its port. An IPv6 network of 64 bits is one address,
// because one host has all of it.
func Address(of net.Addr) string {
	tcp, is := of.(*net.TCPAddr)
	if !is {
		return of.Network()
	}
	if tcp.IP.To4() != nil {
		return tcp.IP.String()
	}
	network, _ := tcp.AddrPort().Addr().Unmap().Prefix(64)
	return network.String()
}
