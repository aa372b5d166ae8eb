package peers

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func clients(proxies ...string) *Clients {
	var list []netip.Prefix
	for _, p := range proxies {
		list = append(list, netip.MustParsePrefix(p))
	}
	return NewClients(list)
}

// The client is the last address that is no proxy, and only a proxy is believed.
func TestClientsOfProxies(t *testing.T) {
	s := clients("10.0.0.0/24", "2001:db8:1::/48")
	proxy, direct := connection("10.0.0.7"), connection("192.0.2.1")
	for _, c := range []struct {
		forwarded []string
		want      string
	}{
		{[]string{"198.51.100.1"}, "198.51.100.1"},
		{[]string{"198.51.100.9, 198.51.100.1"}, "198.51.100.1"},
		{[]string{"198.51.100.9", "198.51.100.1"}, "198.51.100.1"},
		{[]string{"198.51.100.1, 10.0.0.8, 2001:db8:1::1"}, "198.51.100.1"},
		{[]string{"198.51.100.1:4711"}, "198.51.100.1"},
		{[]string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{[]string{"[2001:db8::1]:4711"}, "2001:db8::/64"},
		{[]string{"[2001:db8::2]"}, "2001:db8::/64"},
		{nil, "10.0.0.7"},
		{[]string{"10.0.0.8"}, "10.0.0.7"},
		{[]string{"198.51.100.1, unknown"}, "10.0.0.7"},
		{[]string{"198.51.100.1,"}, "10.0.0.7"},
	} {
		got := s.Of(proxy, c.forwarded)
		if got.address != c.want || got == proxy || got != s.Of(connection("10.0.0.9"), []string{c.want}) && c.want == "198.51.100.1" {
			t.Errorf("%q: %s, want %s", c.forwarded, got.address, c.want)
		}
		if s.Of(direct, c.forwarded) != direct || clients().Of(proxy, c.forwarded) != proxy {
			t.Errorf("%q of no proxy is believed", c.forwarded)
		}
	}
	if s.Of(nil, nil) != nil {
		t.Error("an unknown connection has a client")
	}
}

// A client that exceeds its bound is refused. The connection and the other clients are not.
func TestSpentClients(t *testing.T) {
	s := clients("10.0.0.7/32")
	conn := &from{at: "10.0.0.7"}
	proxy := NewConnection(conn)
	one, other := s.Of(proxy, []string{"198.51.100.1"}), s.Of(proxy, []string{"198.51.100.2"})
	for range wastedAtOnce / 2 {
		one.Abandoned(time.Now())
	}
	if one.Spent() {
		t.Error("a client is refused within its bound")
	}
	for range 100 * wastedAtOnce {
		if one.Abandoned(time.Now()); one.Spent() {
			break
		}
	}
	if !one.Spent() || other.Spent() || proxy.Spent() || conn.closed > 0 {
		t.Errorf("spent: one %t, other %t, proxy %t; closed %d times", one.Spent(), other.Spent(), proxy.Spent(), conn.closed)
	}
}

// The memory of clients is bounded. Clients that wasted nothing make room; those beyond share bounds.
func TestClientsAreBounded(t *testing.T) {
	s := clients("10.0.0.7/32")
	proxy := connection("10.0.0.7")
	at := func(n int) *Connection {
		return s.Of(proxy, []string{fmt.Sprintf("10.1.%d.%d", n/256, n%256)})
	}
	for n := range maxClients {
		at(n).waste(wastedAtOnce / 2)
	}
	if at(maxClients) != s.others || at(maxClients+1) != s.others || len(s.known) != maxClients {
		t.Errorf("%d clients are remembered", len(s.known))
	}
	if at(0).address != "10.1.0.0" {
		t.Error("a client that wasted is forgotten")
	}
	s = clients("10.0.0.7/32")
	for n := range maxClients {
		at(n)
	}
	if at(maxClients) == s.others || len(s.known) != 1 {
		t.Errorf("clients that wasted nothing make no room: %d", len(s.known))
	}
}
