package embedded

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Redis is a Redis inside the process, on a loopback port of its own and behind a password that nobody
// else knows. It keeps nothing: what it held is gone with the process, as after any loss of a Redis, and
// Deputy's ledger has the last word on everything that was in it.
type Redis struct {
	server   *miniredis.Miniredis
	password string
	stop     chan struct{}
	stopped  sync.WaitGroup
}

// expiryInterval is how late a key may expire.
const expiryInterval = time.Second

// NewRedis starts it. Close it after the last client.
func NewRedis() (*Redis, error) {
	r := &Redis{server: miniredis.NewMiniRedis(), password: rand.Text(), stop: make(chan struct{})}
	r.server.RequireAuth(r.password)
	if err := r.server.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("embedded Redis: %w", err)
	}
	r.stopped.Go(r.passTime)
	return r, nil
}

// passTime lets keys expire, which miniredis does not do by itself. Its own way to do so looks at every
// key on every command; this looks once per interval.
func (r *Redis) passTime() {
	ticker := time.NewTicker(expiryInterval)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ticker.C:
			now := time.Now()
			r.server.FastForward(now.Sub(last))
			last = now
		case <-r.stop:
			return
		}
	}
}

// URL is the address without the password.
func (r *Redis) URL() string { return "redis://" + r.server.Addr() }

// Password is what the server asks every client for.
func (r *Redis) Password() string { return r.password }

// Close ends the server and all connections to it.
func (r *Redis) Close() {
	close(r.stop)
	r.stopped.Wait()
	r.server.Close()
}
