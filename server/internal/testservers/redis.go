package testservers

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// RedisServer is a Redis server of the test's own. It writes nothing to disk: after Stop or Kill
// it starts empty, on the same address.
type RedisServer struct {
	Addr string // host:port
	t    testing.TB
	s    *server
}

// Redis returns the address (host:port) of an empty Redis server that only this test uses. A
// server takes some ten milliseconds to start, so none is shared.
func Redis(t testing.TB) (addr string) {
	t.Helper()
	return NewRedis(t).Addr
}

// NewRedis starts a Redis server for this test, and ends it with the test.
func NewRedis(t testing.TB) *RedisServer {
	t.Helper()
	r, err := newRedis()
	if err != nil {
		t.Fatal(err)
	}
	r.t = t
	t.Cleanup(r.s.remove)
	return r
}

func newRedis() (*RedisServer, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis-server is missing: run tools/install-test-deps, or install Debian's package redis-server")
	}
	dir, err := tempDir(nil)
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s := &server{
		name: "redis-server", dir: dir, port: port, quit: syscall.SIGTERM,
		argv: []string{program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", dir,
			"--save", "", "--appendonly", "no", "--shutdown-timeout", "0"},
		ready: func() error { return pingRedis(addr) },
	}
	if err := s.start(); err != nil {
		s.remove()
		return nil, err
	}
	return &RedisServer{Addr: addr, s: s}, nil
}

// URL is the server's address as clients parse it.
func (r *RedisServer) URL() string { return "redis://" + r.Addr }

// Stop ends the server in order.
func (r *RedisServer) Stop() { r.s.stop(r.s.quit) }

// Kill ends the server with SIGKILL.
func (r *RedisServer) Kill() { r.s.stop(syscall.SIGKILL) }

// Pause freezes the server with SIGSTOP: it accepts connections and answers nothing.
func (r *RedisServer) Pause() { r.s.pause(true) }

// Resume ends a Pause.
func (r *RedisServer) Resume() { r.s.pause(false) }

// Start starts a stopped or killed server on the same address and returns when it answers.
func (r *RedisServer) Start() {
	r.t.Helper()
	if err := r.s.start(); err != nil {
		r.t.Fatal(err)
	}
}

func pingRedis(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "+PONG\r\n" {
		err = fmt.Errorf("PING was answered by %q", answer)
	}
	return err
}
