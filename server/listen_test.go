package server

import (
	"net"
	"testing"
)

// listening is a listener at an address to which no client connects.
type listening struct {
	net.Listener
	at string
}

func (l listening) Addr() net.Addr { return address(l.at) }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// TestAuthorities: a proof is for a name of the server's own. A name that differs in more than case
// and the port of https, or that is not configured, belongs to another server.
func TestAuthorities(t *testing.T) {
	for _, c := range []struct {
		at   string
		own  []string
		name string
		want bool
	}{
		{"10.0.0.1:9090", []string{"deputy.example"}, "deputy.example", true},
		{"10.0.0.1:9090", []string{"deputy.example"}, "Deputy.Example:443", true},
		{"10.0.0.1:9090", []string{"deputy.example:443"}, "deputy.example", true},
		{"10.0.0.1:9090", []string{"deputy.example", "[2001:db8::1]:9090"}, "[2001:DB8::1]:9090", true},
		{"10.0.0.1:9090", []string{"deputy.example"}, "deputy.example:9090", false},
		{"10.0.0.1:9090", []string{"deputy.example"}, "deputy.example:443:443", false},
		{"10.0.0.1:9090", []string{"deputy.example"}, "deputy.example.", false},
		{"10.0.0.1:9090", []string{"deputy.example"}, "tool.example", false},
		{"10.0.0.1:9090", []string{"deputy.example"}, "deputy.example@tool.example", false},
		{"10.0.0.1:9090", []string{"deputy.example"}, "", false},
		// Configured names are the only names.
		{"127.0.0.1:9090", []string{"deputy.example"}, "127.0.0.1:9090", false},

		{"127.0.0.1:9090", nil, "127.0.0.1:9090", true},
		{"127.0.0.1:9090", nil, "localhost:9090", true},
		{"[::1]:9090", nil, "[::1]:9090", true},
		{"127.0.0.1:443", nil, "localhost", true},
		{"127.0.0.1:9090", nil, "localhost", false},
		{"127.0.0.1:9090", nil, "127.0.0.2:9090", false},
		{"127.0.0.1:9090", nil, "tool.example:9090", false},
		{"[::]:9090", nil, "[::]:9090", false},
		{"10.0.0.1:9090", nil, "10.0.0.1:9090", false},
		{"", nil, "", false},
	} {
		s := &Server{}
		s.listen.GRPC.Authorities, s.listeners.grpc = c.own, listening{at: c.at}
		if got := s.isAuthority(c.name); got != c.want {
			t.Errorf("at %s, known as %q: %q is its own: %t", c.at, c.own, c.name, got)
		}
	}
}
