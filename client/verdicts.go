package client

import (
	"strings"
	"sync"
	"sync/atomic"

	"deputy.example/deputy/client/delegation"
)

// A verdict is what was found out about an authentic token once and does not change: what it says and
// which key signed it. Everything that can change is held against it each time it is used.
type verdict struct {
	Delegation
	keyID string
	key   *verificationKey

	cleared atomic.Pointer[clearance]
}

// clearance remembers in which state of which set nothing in the chain was revoked.
type clearance struct {
	generation uint64 // of the set: knowledge.generation
	version    uint64 // of what is in it: RevocationSet.Version
}

// standsIn says whether no hop of the token's chain is revoked. As long as the set did not change, its
// earlier answer holds.
func (d *verdict) standsIn(k *knowledge) bool {
	version := k.set.Version() // before Hit: what changes meanwhile must not be covered
	if c := d.cleared.Load(); c != nil && c.generation == k.generation && c.version == version {
		return true
	}
	if _, revoked := k.set.Hit(d.claims.Lineage()); revoked {
		return false
	}
	d.cleared.Store(&clearance{k.generation, version})
	return true
}

// maxVerdictBytes bounds the tokens in one of the two generations of verdicts: some four thousand of a
// kilobyte each. Claims take a few times as much.
const maxVerdictBytes = 4 << 20

// verdicts remembers the verdicts on tokens that were accepted, by the token's exact bytes. It holds two
// generations: the young one takes what is new or used, and when it is full becomes the old one, whose
// place it takes. So a token that is in use stays, and strangers cannot fill it, because what was not
// signed by the issuer is not in it. The zero value is ready.
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
	token = strings.Clone(token) // it may be a part of something larger
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
