package peers

import (
	"container/list"
	"sync"
)

// Unfinished bounds how many bytes all calls hold whose first messages are not whole. A connection
// counts what was read from it since its oldest such call began, because a connection does not tell
// which call a byte is for. Its methods are safe for concurrent use.
type Unfinished struct {
	most int // bytes

	mu   sync.Mutex // guards what follows, the messages, and read and last of connections
	held int
	on   map[*Connection]*list.List // of *Message, the oldest first; none is empty
}

// NewUnfinished returns a bound of so many bytes.
func NewUnfinished(most int) *Unfinished {
	return &Unfinished{most: most, on: make(map[*Connection]*list.List)}
}

// Message is a message that is not whole.
type Message struct {
	of         *Unfinished
	connection *Connection
	from       int           // what the connection had read before
	at         *list.Element // nil when it is whole
	yield      func()
}

// Begin counts what a connection reads until the message is whole. The call may have begun within
// the last read. If the bytes are needed, yield is called; the message is not counted any more.
func (u *Unfinished) Begin(c *Connection, yield func()) *Message {
	u.mu.Lock()
	defer u.mu.Unlock()
	m := &Message{of: u, connection: c, from: c.read - c.last, yield: yield}
	here := u.on[c]
	if here == nil {
		here = list.New()
		u.on[c] = here
		u.held += c.last
	}
	m.at = here.PushBack(m)
	return m
}

// Read counts bytes that were read from a connection. Beyond the bound, the oldest messages of the
// connection that has most bytes yield.
func (u *Unfinished) Read(c *Connection, n int) {
	for _, m := range u.charge(c, n) {
		m.yield()
	}
}

func (u *Unfinished) charge(c *Connection, n int) (yielded []*Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c.read, c.last = c.read+n, n
	if u.on[c] != nil {
		u.held += n
	}
	for u.held > u.most {
		fullest := u.fullest()
		for here := u.on[fullest]; here.Len() > 0 && u.held > u.most; {
			m := here.Front().Value.(*Message)
			m.leave()
			yielded = append(yielded, m)
		}
	}
	return yielded
}

// fullest returns the connection that has most bytes. There is one while any byte is held.
func (u *Unfinished) fullest() (fullest *Connection) {
	most := -1
	for c, here := range u.on {
		if held := c.read - here.Front().Value.(*Message).from; held > most {
			fullest, most = c, held
		}
	}
	return fullest
}

// Whole ends the count. A second call, and a call of a nil Message, do nothing.
func (m *Message) Whole() {
	if m == nil {
		return
	}
	m.of.mu.Lock()
	defer m.of.mu.Unlock()
	m.leave()
}

func (m *Message) leave() {
	if m.at == nil {
		return
	}
	here, until := m.of.on[m.connection], m.from
	if here.Front() == m.at {
		if until = m.connection.read; m.at.Next() != nil {
			until = m.at.Next().Value.(*Message).from
		}
	}
	m.of.held -= until - m.from
	here.Remove(m.at)
	m.at = nil
	if here.Len() == 0 {
		delete(m.of.on, m.connection)
	}
}
