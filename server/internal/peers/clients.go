package peers

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxClients bounds the clients of proxies that are told apart at one listener.
const maxClients = 16 << 10

// Clients tells the clients of proxies apart. A proxy carries the calls of many clients on one
// connection, so one client must neither take the places of all nor make the connection close. Its
// methods are safe for concurrent use.
type Clients struct {
	proxies []netip.Prefix

	mu     sync.Mutex // guards what follows
	known  map[string]*Connection
	others *Connection // of the clients for which there is no more room
	pruned time.Time
}

// NewClients returns the clients of the proxies at these addresses, which must append the address of
// the client to x-forwarded-for.
func NewClients(proxies []netip.Prefix) *Clients {
	return &Clients{proxies: proxies, known: make(map[string]*Connection), others: newClient("others")}
}

func newClient(address string) *Connection {
	return &Connection{address: address, wasted: rate.NewLimiter(wastedPerSecond, wastedAtOnce)}
}

// Of returns whose bounds a call counts against. That is the connection, unless a proxy made it:
// then it is the last client in the values of x-forwarded-for that is no proxy. Without such a
// client it is the proxy's address, as one client.
func (s *Clients) Of(c *Connection, forwarded []string) *Connection {
	if len(s.proxies) == 0 || c == nil {
		return c
	}
	tcp, is := c.conn.RemoteAddr().(*net.TCPAddr)
	if !is || !s.isProxy(tcp.AddrPort().Addr()) {
		return c
	}
	return s.client(s.last(forwarded, c.address))
}

func (s *Clients) isProxy(address netip.Addr) bool {
	for _, p := range s.proxies {
		if p.Contains(address.Unmap()) {
			return true
		}
	}
	return false
}

// last returns the address of the last client. What precedes it may be forged.
func (s *Clients) last(forwarded []string, proxy string) string {
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		address, err := netip.ParseAddr(strings.Trim(hop, "[]"))
		if err != nil {
			with, err := netip.ParseAddrPort(hop)
			if err != nil {
				return proxy
			}
			address = with.Addr()
		}
		if !s.isProxy(address) {
			return Address(&net.TCPAddr{IP: address.WithZone("").AsSlice()})
		}
	}
	return proxy
}

func (s *Clients) client(address string) *Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.known[address]
	if c != nil {
		return c
	}
	if len(s.known) >= maxClients {
		s.prune(time.Now())
	}
	if len(s.known) >= maxClients {
		return s.others
	}
	c = newClient(address)
	s.known[address] = c
	return c
}

// prune drops the clients that wasted nothing lately, at most once a second.
func (s *Clients) prune(now time.Time) {
	if now.Sub(s.pruned) < time.Second {
		return
	}
	s.pruned = now
	for address, c := range s.known {
		if c.wasted.TokensAt(now) >= wastedAtOnce {
			delete(s.known, address)
		}
	}
}
