package server

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// A listener whose connections have the addresses that the test sets.
type door struct {
	arrive chan net.Conn
	closed chan struct{}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.arrive:
		return conn, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error   { close(d.closed); return nil }
func (d *door) Addr() net.Addr { return &net.TCPAddr{} }

type arrival struct {
	net.Conn
	from net.Addr
}

func (a arrival) RemoteAddr() net.Addr { return a.from }

// TestCrowd: one address has at most half of the places, other addresses have the rest, and a
// connection beyond the bound is closed at once. A connection that closes frees its place.
func TestCrowd(t *testing.T) {
	refused := prometheus.NewCounter(prometheus.CounterOpts{Name: "refused"})
	d := &door{arrive: make(chan net.Conn), closed: make(chan struct{})}
	c := newCrowd(d, 4, refused)
	taken := make(chan net.Conn)
	over := make(chan error, 1)
	go func() {
		for {
			conn, err := c.Accept()
			if err != nil {
				over <- err
				return
			}
			taken <- conn
		}
	}()
	come := func(address string) net.Conn { // nil where the connection was refused
		t.Helper()
		here, there := net.Pipe()
		t.Cleanup(func() { _ = here.Close() })
		d.arrive <- arrival{there, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}
		closed := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, here); close(closed) }()
		select {
		case conn := <-taken:
			return conn
		case <-closed:
			return nil
		}
	}
	first, second := come("192.0.2.1:1"), come("[::ffff:192.0.2.1]:2")
	if first == nil || second == nil || come("192.0.2.1:3") != nil {
		t.Fatal("one address does not have half of the places")
	}
	if v6 := come("[2001:db8::1]:1"); v6 == nil || come("[2001:db8::2]:1") == nil {
		t.Fatal("others found no room")
	}
	if come("192.0.2.7:1") != nil {
		t.Error("there were more than all")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	_ = first.Close() // a second Close frees no second place
	if come("192.0.2.7:1") == nil || come("192.0.2.8:1") != nil {
		t.Error("who left made room for one")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(refused)
	if families, err := registry.Gather(); err != nil || families[0].Metric[0].GetCounter().GetValue() != 3 {
		t.Errorf("refused: %v %v", families, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
