// Package redisd is the part of Redis that Deputy needs, inside the process: the commands that
// package guard and its conformance suite use, and guard's scripts, in Go instead of Lua. It
// implements Redis's protocol (RESP2), so that the client is the same as in production, but over
// pipes in memory: no other process can connect.
//
// It persists nothing: its data is lost with the process, as after any loss of a Redis.
package redisd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// Address is the URL for the configuration. It names this machine, as Deputy requires of a Redis
// without TLS, and receives no connections: see [Server.Dial].
const Address = "redis://localhost"

// Server holds the keys and the connections. Commands run one after the other, as in Redis.
type Server struct {
	mu       sync.Mutex
	db       database
	channels map[string]map[*connection]bool // subscribers of each channel
	open     map[*connection]bool
	closed   bool
	serving  sync.WaitGroup
}

// New makes an empty one. Close it after the last client. now is its clock.
func New(now func() time.Time) *Server {
	return &Server{
		db:       database{now: now, keys: make(map[string]*value), expiring: make(map[int64][]string)},
		channels: make(map[string]map[*connection]bool),
		open:     make(map[*connection]bool),
	}
}

// Dial opens a connection. Network and address do not matter: a Server is the only one that it
// leads to.
func (s *Server) Dial(context.Context, string, string) (net.Conn, error) {
	theirs, ours := net.Pipe()
	c := &connection{server: s, conn: ours}
	c.ready.L = &c.mu
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("embedded Redis: it is closed")
	}
	s.open[c] = true
	s.serving.Go(c.read)
	s.serving.Go(c.write)
	return theirs, nil
}

// Close ends all connections.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.end()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// connection has a goroutine for each direction. A client may send a long pipeline before it reads
// the first reply, and a publisher must not wait for a subscriber.
type connection struct {
	server *Server
	conn   net.Conn

	mu    sync.Mutex
	ready sync.Cond // there is something in out, or the end
	out   reply
	ended bool
}

// maxUnread is how many bytes of replies a client may leave unread before it is cut off.
const maxUnread = 256 << 20

func (c *connection) read() {
	defer c.leave()
	in := bufio.NewReaderSize(c.conn, 16<<10)
	var command []string
	for {
		var err error
		if command, err = readCommand(in, command[:0]); err != nil {
			return // it has gone, or uses another protocol
		}
		c.server.mu.Lock()
		c.mu.Lock()
		c.server.run(c, command)
		c.mu.Unlock()
		c.server.mu.Unlock()
		if in.Buffered() == 0 {
			c.ready.Signal()
		}
	}
}

func (c *connection) write() {
	var sending reply
	for {
		c.mu.Lock()
		for len(c.out) == 0 && !c.ended {
			c.ready.Wait()
		}
		if c.ended {
			c.mu.Unlock()
			return
		}
		sending, c.out = c.out, sending[:0]
		c.mu.Unlock()
		if _, err := c.conn.Write(sending); err != nil {
			c.end()
			return
		}
		if cap(sending) > 64<<10 {
			sending = nil
		}
	}
}

// end makes both directions end.
func (c *connection) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.ready.Signal()
	_ = c.conn.Close()
}

func (c *connection) leave() {
	c.end()
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	delete(c.server.open, c)
	for name := range c.server.channels {
		c.server.unsubscribe(c, name)
	}
}

// push sends an unsolicited message. The server's lock is held, the connection's is not.
func (c *connection) push(channel, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > maxUnread {
		_ = c.conn.Close() // reading fails, and so it leaves
		return
	}
	c.out.array(3)
	c.out.bulk("message")
	c.out.bulk(channel)
	c.out.bulk(message)
	c.ready.Signal()
}

// Bounds of one command, far above what guard sends.
const (
	maxArguments = 1 << 16
	maxArgument  = 1 << 20
)

// readCommand reads an array of bulk strings.
func readCommand(in *bufio.Reader, command []string) ([]string, error) {
	n, err := readLength(in, '*', maxArguments)
	if err != nil {
		return nil, err
	}
	for range n {
		length, err := readLength(in, '$', maxArgument)
		if err != nil {
			return nil, err
		}
		text := make([]byte, length+2)
		if _, err := io.ReadFull(in, text); err != nil {
			return nil, err
		}
		command = append(command, string(text[:length]))
	}
	return command, nil
}

func readLength(in *bufio.Reader, kind byte, most int) (int, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 4 || line[0] != kind || line[len(line)-2] != '\r' {
		return 0, errors.New("embedded Redis: this is not RESP")
	}
	n, err := strconv.Atoi(string(line[1 : len(line)-2]))
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("embedded Redis: %q is longer than %d", line, most)
	}
	return n, nil
}

// reply is what is to be sent, in RESP2.
type reply []byte

func (r *reply) array(n int)      { r.line('*', strconv.Itoa(n)) }
func (r *reply) integer(n int64)  { r.line(':', strconv.FormatInt(n, 10)) }
func (r *reply) status(s string)  { r.line('+', s) }
func (r *reply) failure(s string) { r.line('-', s) }
func (r *reply) none()            { r.line('$', "-1") }

func (r *reply) bulk(s string) {
	r.line('$', strconv.Itoa(len(s)))
	*r = append(append(*r, s...), "\r\n"...)
}

func (r *reply) line(kind byte, s string) {
	*r = append(append(append(*r, kind), s...), "\r\n"...)
}
