package peers

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// from is a connection of an address.
type from struct {
	net.Conn
	at     string
	closed int
}

func (f *from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.at), Port: 1} }
func (f *from) Close() error         { f.closed++; return nil }

func connection(at string) *Connection { return NewConnection(&from{at: at}) }

func TestAddress(t *testing.T) {
	for _, c := range []struct{ ip, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8::1", "2001:db8::/64"},
		{"2001:db8::ffff:1", "2001:db8::/64"},
		{"2001:db8:0:1::1", "2001:db8:0:1::/64"},
	} {
		if got := Address(&net.TCPAddr{IP: net.ParseIP(c.ip), Port: 9}); got != c.want {
			t.Errorf("%s: %s", c.ip, got)
		}
	}
	if got := Address(&net.UnixAddr{Net: "unix"}); got != "unix" {
		t.Error(got)
	}
}

// What lasts keeps its place: a connection, an address and all have no more than their parts, and who leaves makes room.
func TestPlacesThatLast(t *testing.T) {
	p := NewLasting(6, 4, 2)
	a, b, c, d := connection("192.0.2.1"), connection("192.0.2.1"), connection("192.0.2.1"), connection("192.0.2.2")
	var taken []*Place
	enter := func(c *Connection) bool {
		place := p.Enter(c, func() { t.Error("a place was freed") })
		if place != nil {
			taken = append(taken, place)
		}
		return place != nil
	}
	for i, want := range []struct {
		c  *Connection
		is bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, true}, {c, false}, {d, true}, {d, true}, {d, false}} {
		if enter(want.c) != want.is {
			t.Errorf("%d: %t", i, !want.is)
		}
	}
	taken[0].Leave()
	taken[0].Leave() // twice is once
	(*Place)(nil).Leave()
	if !enter(c) || enter(c) {
		t.Error("one that left did not make room for one")
	}
	for _, place := range taken {
		place.Leave()
	}
	if p.taken.Len()+len(p.at)+len(p.on) != 0 {
		t.Errorf("%d, %v, %v are left", p.taken.Len(), p.at, p.on)
	}
}

// Addresses that have all places make room for others until they have as many. Who is refused
// because of others is not blamed.
func TestPlacesThatLastAreShared(t *testing.T) {
	p := NewLasting(8, 4, 4)
	var freed []string
	conns := make(map[string]*from)
	enter := func(at string) bool {
		conns[at] = &from{at: at}
		return p.Enter(NewConnection(conns[at]), func() { freed = append(freed, at) }) != nil
	}
	for n := range 8 {
		enter([]string{"192.0.2.1", "192.0.2.2"}[n/4])
	}
	for range 2 {
		if !enter("192.0.2.3") {
			t.Error("two addresses have all places")
		}
	}
	if len(freed) != 2 || freed[0] == freed[1] {
		t.Errorf("%v made room", freed)
	}
	if enter("192.0.2.3") || enter("192.0.2.1") || len(freed) != 2 {
		t.Error("addresses with as many made room, or one with as many got more")
	}
	late := &from{at: "192.0.2.3"}
	c := NewConnection(late)
	for range 2 * wastedAtOnce {
		p.Enter(c, nil)
	}
	if late.closed > 0 {
		t.Error("a connection is closed because others have all places")
	}
	own := NewConnection(&from{at: "192.0.2.4"})
	q := NewLasting(8, 1, 1)
	for range wastedAtOnce {
		q.Enter(own, nil)
	}
	if own.conn.(*from).closed == 0 {
		t.Error("a connection that has its part and goes on is not closed")
	}
}

// What is brief makes room: the oldest of the address, or else the oldest of all. A connection has no more than its part.
func TestPlacesThatYield(t *testing.T) {
	p := NewPlaces(5, 3, 2)
	var yielded []string
	enter := func(c *Connection, name string) *Place {
		return p.Enter(c, func() { yielded = append(yielded, name) })
	}
	a, b, c := connection("192.0.2.1"), connection("192.0.2.1"), connection("192.0.2.2")
	first := enter(c, "c1")
	enter(a, "a1")
	enter(a, "a2")
	if enter(a, "a3") != nil || len(yielded) > 0 {
		t.Errorf("a connection has more than its part: %v", yielded)
	}
	enter(b, "b1")
	enter(b, "b2") // in place of the oldest of that address
	if fmt.Sprint(yielded) != "[a1]" {
		t.Error(yielded)
	}
	enter(c, "c2")
	if enter(connection("192.0.2.3"), "d1") == nil || fmt.Sprint(yielded) != "[a1 c1]" { // in place of the oldest of all
		t.Error(yielded)
	}
	first.Leave() // it has no place any more
	if p.taken.Len() != 5 {
		t.Errorf("%d are taken", p.taken.Len())
	}
}

func TestKnownGivesItsPlaceBack(t *testing.T) {
	p := NewPlaces(1, 1, 1)
	c := connection("192.0.2.1")
	place := p.Enter(c, nil)
	ctx := Holding(context.Background(), place)
	if p.Enter(c, nil) != nil {
		t.Fatal("there are two places")
	}
	if place.Authenticated() || (*Place)(nil).Authenticated() {
		t.Error("a caller is authenticated before it is known")
	}
	Known(ctx)
	if !place.Authenticated() {
		t.Error("a known caller is not authenticated")
	}
	Known(context.Background())
	if p.Enter(c, nil) == nil {
		t.Error("the place was not given back")
	}
}

// A connection may waste so much at once. What lasted is not wasted, and what was refused counts several times.
func TestWaste(t *testing.T) {
	for name, c := range map[string]struct {
		most  int
		waste func(*Connection)
	}{
		"abandoned": {wastedAtOnce, func(c *Connection) { c.Abandoned(time.Now()) }},
		"crowded":   {wastedAtOnce / crowdedCounts, (*Connection).Crowded},
	} {
		conn := &from{at: "192.0.2.1"}
		connection := NewConnection(conn)
		for range c.most {
			c.waste(connection)
		}
		if conn.closed > 0 {
			t.Errorf("%s: it was closed within its bound", name)
		}
		for range 1_000_000 {
			if c.waste(connection); conn.closed > 0 {
				break
			}
		}
		if conn.closed == 0 {
			t.Errorf("%s: it was never closed", name)
		}
	}
	conn := &from{at: "192.0.2.1"}
	connection := NewConnection(conn)
	for range 100 * wastedAtOnce {
		connection.Abandoned(time.Now().Add(-rapid))
	}
	if conn.closed > 0 {
		t.Error("what lasted counts")
	}
}

// Of a flood the log has the first lines of each second, and how many it does not have.
func TestSampler(t *testing.T) {
	at := time.Unix(1000, 0)
	s, text := NewSampler(func() time.Time { return at }), new(bytes.Buffer)
	logger := slog.New(slog.NewTextHandler(text, nil))
	flood := func(n int) []string {
		text.Reset()
		for range n {
			s.Log(t.Context(), logger, slog.LevelInfo, "call")
		}
		return strings.Split(strings.TrimSpace(text.String()), "\n")
	}
	if lines := flood(1000); len(lines) != linesPerSecond || strings.Contains(text.String(), "left_out") {
		t.Errorf("%d lines: %s", len(lines), text)
	}
	at = at.Add(time.Second)
	if lines := flood(2); len(lines) != 2 || !strings.Contains(lines[0], fmt.Sprint("left_out=", 1000-linesPerSecond)) || strings.Contains(lines[1], "left_out") {
		t.Error(text)
	}
}
