package peers

import (
	"fmt"
	"testing"
)

// Beyond the bound, the oldest messages of the connection that has most bytes yield. What is whole does not count.
func TestUnfinished(t *testing.T) {
	u := NewUnfinished(100)
	a, b := connection("192.0.2.1"), connection("192.0.2.2")
	var yielded []string
	begin := func(c *Connection, name string) *Message {
		return u.Begin(c, func() { yielded = append(yielded, name) })
	}
	expect := func(held int, names string) {
		t.Helper()
		if u.held != held || fmt.Sprint(yielded) != names {
			t.Errorf("%d held and %v yielded, want %d and %s", u.held, yielded, held, names)
		}
	}
	u.Read(a, 1000) // before any call
	expect(0, "[]")
	u.Read(a, 10)
	a1 := begin(a, "a1") // its headers came in the last read, and maybe more
	expect(10, "[]")
	u.Read(a, 30)
	a2 := begin(a, "a2")
	u.Read(b, 5)
	b1 := begin(b, "b1")
	u.Read(b, 15)
	expect(60, "[]")
	a1.Whole() // a2 began within the read of 30
	a1.Whole() // twice is once
	(*Message)(nil).Whole()
	expect(50, "[]")
	a3 := begin(a, "a3")
	a3.Whole() // a2 is older, and all may be its own
	expect(50, "[]")
	u.Read(a, 40)
	begin(a, "a4")
	u.Read(b, 20) // a has 70, of which 30 are older than a4
	expect(80, "[a2]")
	a2.Whole() // it does not count any more
	expect(80, "[a2]")
	b1.Whole()
	expect(40, "[a2]")
	u.Read(a, 100)
	expect(0, "[a2 a4]")
	if len(u.on) != 0 {
		t.Errorf("%v is left", u.on)
	}
}
