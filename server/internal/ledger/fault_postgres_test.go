package ledger_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// faultyProxy connects a ledger to PostgreSQL, reads the statements that pass, and breaks the
// connection where at returns an error: before a statement reaches the server, or after the server
// has executed it and before its answer reaches the ledger.
type faultyProxy struct {
	server string
	at     func(point string) error
	wg     sync.WaitGroup

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

// proxied returns the address of a proxy in front of the database, which ends with the test.
func proxied(t testing.TB, dsn string, at func(point string) error) string {
	t.Helper()
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyProxy{server: address.Host, at: at}
	p.wg.Go(func() { p.accept(listener) })
	t.Cleanup(func() {
		_ = listener.Close()
		p.close()
		p.wg.Wait()
	})
	address.Host = listener.Addr().String()
	return address.String()
}

func (p *faultyProxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil || !p.keep(client, server) {
			_ = client.Close()
			continue
		}
		c := &proxiedConn{proxy: p, client: client, server: server, statements: map[string]string{}}
		c.executed = sync.NewCond(&c.mu)
		p.wg.Go(c.requests)
		p.wg.Go(c.replies)
	}
}

func (p *faultyProxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, conns...)
	return !p.closed
}

func (p *faultyProxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// proxiedConn is one connection, in the messages of PostgreSQL's protocol.
type proxiedConn struct {
	proxy          *faultyProxy
	client, server net.Conn
	statements     map[string]string // prepared ones, by name
	bound          string            // the statement of the last Bind

	mu       sync.Mutex
	executed *sync.Cond // on mu: a reply has come, or there will be none
	awaited  int        // ReadyForQuery messages that the server owes
	broken   bool       // nothing reaches the client any more
	ended    bool       // nothing comes from the server any more
}

// syncMessage is the one after which the server reports that it has executed everything before it.
var syncMessage = []byte{'S', 0, 0, 0, 4}

func (c *proxiedConn) requests() {
	defer c.hangUp()
	if err := c.startUp(); err != nil {
		return
	}
	for {
		message, err := readMessage(c.client)
		if err != nil {
			return
		}
		before, after := c.points(message)
		if before != "" && c.proxy.at(before) != nil {
			return
		}
		fails := after != "" && c.proxy.at(after) != nil
		if fails {
			c.cut()
		}
		if err := c.forward(message); err != nil {
			return
		}
		if !fails {
			continue
		}
		if message[0] != 'Q' {
			if err := c.forward(syncMessage); err != nil {
				return
			}
		}
		c.await()
		return
	}
}

// startUp passes on the first message, which has no type: it begins a session, or cancels a
// statement of another one.
func (c *proxiedConn) startUp() error {
	var length [4]byte
	if _, err := io.ReadFull(c.client, length[:]); err != nil {
		return err
	}
	rest := make([]byte, binary.BigEndian.Uint32(length[:])-4)
	if _, err := io.ReadFull(c.client, rest); err != nil {
		return err
	}
	_, err := c.server.Write(append(length[:], rest...))
	c.owe(1)
	return err
}

// points are those at which the message can fail.
func (c *proxiedConn) points(message []byte) (before, after string) {
	body := string(message[5:])
	switch message[0] {
	case 'P': // Parse
		name, rest, _ := strings.Cut(body, "\x00")
		c.statements[name], _, _ = strings.Cut(rest, "\x00")
	case 'B': // Bind
		_, rest, _ := strings.Cut(body, "\x00")
		name, _, _ := strings.Cut(rest, "\x00")
		c.bound = c.statements[name]
		return point("before", c.bound), ""
	case 'E': // Execute
		return "", point("after", c.bound)
	case 'Q': // Query
		if sql := strings.TrimSuffix(body, "\x00"); !strings.HasPrefix(sql, "-- ping") {
			return point("before", sql), point("after", sql)
		}
	}
	return "", ""
}

func (c *proxiedConn) forward(message []byte) error {
	if message[0] == 'S' || message[0] == 'Q' {
		c.owe(1)
	}
	_, err := c.server.Write(message)
	return err
}

func (c *proxiedConn) replies() {
	defer c.hangUp()
	for {
		message, err := readMessage(c.server)
		if err != nil {
			return
		}
		if message[0] == 'Z' { // ReadyForQuery
			c.owe(-1)
		}
		if c.isCut() {
			continue
		}
		if _, err := c.client.Write(message); err != nil {
			return
		}
	}
}

func (c *proxiedConn) owe(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaited += n
	c.executed.Broadcast()
}

func (c *proxiedConn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
}

func (c *proxiedConn) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// await waits until the server has executed all that was forwarded.
func (c *proxiedConn) await() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.awaited > 0 && !c.ended {
		c.executed.Wait()
	}
}

func (c *proxiedConn) hangUp() {
	_ = c.client.Close()
	_ = c.server.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.executed.Broadcast()
}

// readMessage reads a message with its type and its length.
func readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, 5)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(message[1:]) - 4
	message = append(message, make([]byte, length)...)
	_, err := io.ReadFull(r, message[5:])
	return message, err
}
