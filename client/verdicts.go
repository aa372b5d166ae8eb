package client

import (
	"strings"
	"sync"
	"sync/atomic"

	"deputy.example/deputy/client/delegation"
)

// A verdict is the part of the check of an authentic token that does not change: its claims and the
// key that signed it. Everything that can change is checked each time the verdict is used.
type verdict struct {
	Delegation
	keyID string
	key   *verificationKey

	cleared atomic.Pointer[clearance]
}

// clearance records the state of a set in which nothing in the chain was revoked.
type clearance struct {
	generation uint64 // of the set: knowledge.generation
	version    uint64 // of its content: RevocationSet.Version
}

// standsIn reports whether no hop of the token's chain is revoked. While the set does not change,
// its earlier answer holds.
func (d *verdict) standsIn(k *knowledge) bool {
	version := k.set.Version() // before Hit: a later change must not be covered
	if c := d.cleared.Load(); c != nil && c.generation == k.generation && c.version == version {
		return true
	}
	if _, revoked := k.set.Hit(d.claims.Lineage()); revoked {
		return false
	}
	d.cleared.Store(&clearance{k.generation, version})
	return true
}

// maxVerdictBytes bounds the tokens in one of the two generations of verdicts: about four thousand
// of one kilobyte each. Their claims take several times as much.
const maxVerdictBytes = 4 << 20

// verdicts remembers the verdicts on accepted tokens, by the token's exact bytes. It holds two
// generations: the young one receives new and used verdicts. When it is full, it becomes the old
// one, and the old one is dropped. So a token in use stays. Unauthenticated callers cannot fill the
// memory, because it holds only tokens that the issuer signed. The zero value is ready.
type verdicts struct {
	mu         sync.RWMutex
	young, old map[string]*verdict
	bytes      int // of tokens in young
}

// get returns the verdict on the token, or nil.
func (c *verdicts) get(token string) *verdict {
	c.mu.RLock()
	d, young := c.young[token]
	if !young {
		d = c.old[token]
	}
	c.mu.RUnlock()
	if d != nil && !young {
		c.put(token, d)
	}
	return d
}

func (c *verdicts) put(token string, d *verdict) {
	if len(token) > delegation.MaxTokenBytes {
		return
	}
	token = strings.Clone(token) // the token may be part of a larger string
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.young == nil || c.bytes+len(token) > maxVerdictBytes {
		c.old, c.young, c.bytes = c.young, make(map[string]*verdict), 0
	}
	if _, again := c.young[token]; !again {
		c.bytes += len(token)
	}
	c.young[token] = d
}

// drop forgets a token that will never be accepted again.
func (c *verdicts) drop(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, young := c.young[token]; young {
		c.bytes -= len(token)
		delete(c.young, token)
	}
	delete(c.old, token)
}
