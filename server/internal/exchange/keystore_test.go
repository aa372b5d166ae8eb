package exchange_test

import (
	"sync"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/exchange/exchangetest"
	"deputy.example/deputy/server/internal/vault"
)

// keyClock is the clock of managed signing keys. By it they can become stale within a call, as they do
// while their table cannot be read: then they neither sign nor verify.
type keyClock struct {
	mu    sync.Mutex
	stale func() // called before the keys are stale; nil: they are fresh
	reads int    // that still find them fresh
}

func (c *keyClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stale == nil:
	case c.reads > 0:
		c.reads--
	default:
		c.stale()
		return time.Now().Add(vault.Stale + time.Minute)
	}
	return time.Now()
}

// failSigning makes the keys stale for the next signature of a call, and calls then first. The call
// reads the keys once for the length of the token and, for a derived subject token, once to verify it.
func (c *keyClock) failSigning(derived bool, then func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale, c.reads = then, 1
	if derived {
		c.reads++
	}
}

// mend makes the keys fresh.
func (c *keyClock) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = nil
}

// managed is a world whose tenant signs with managed keys.
func managed(t testing.TB) (*exchangetest.World, *exchangetest.Tenant, *keyClock) {
	t.Helper()
	keys := &keyClock{}
	w := exchangetest.New(t, exchangetest.Config{KeysNow: keys.now})
	return w, w.Tenant(), keys
}
