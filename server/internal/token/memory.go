package token

import (
	"strings"
	"sync"
	"sync/atomic"
)

// Memory remembers tokens that were found authentic, so that one which comes again and again (a
// workload's, an actor's, a parent that fans out) is read and its signature checked once. What it
// remembers cannot change: the exact bytes, what they say, and the key that verified them. Everything
// that can is asked anew each time: whether that key still is its issuer's, the time, audiences,
// conditions, and what was revoked. So a token that expires or whose key is removed dies here too.
//
// It is safe for concurrent use and may serve several tenants.
type Memory struct {
	most int // bytes of tokens in one generation

	mu         sync.Mutex // guards what follows
	young, old map[string]*remembered
	size       int // bytes of the tokens in young
}

// remembered is a presented token that has been authentic at least once.
type remembered struct {
	presented
	by atomic.Pointer[publicKey] // that verified it last
}

// DefaultMemory is how many bytes of tokens are remembered at most; what is known of them takes several
// times that.
const DefaultMemory = 8 << 20

// NewMemory remembers up to so many bytes of tokens; 0: none.
func NewMemory(bytes int) *Memory {
	return &Memory{most: bytes / 2, young: make(map[string]*remembered)}
}

// recall returns what is known of a token with exactly these bytes, or nil.
func (m *Memory) recall(raw string) *remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.young[raw]; r != nil {
		return r
	}
	r := m.old[raw]
	if r != nil {
		m.put(r.raw, r) // it is in use, so it stays
	}
	return r
}

// keep remembers a token that the key verified. The token gets memory of its own: what it came in may be
// many times as large.
func (m *Memory) keep(p presented, by *publicKey) {
	if len(p.raw) > m.most {
		return
	}
	own := *p.Unverified
	p.raw = strings.Clone(p.raw)
	own.SigningInput = p.raw[:len(own.SigningInput)]
	p.Unverified = &own
	r := &remembered{presented: p}
	r.memory = r
	r.by.Store(by)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(p.raw, r)
}

// put needs m.mu. What was not asked for while a whole generation of others came is forgotten.
func (m *Memory) put(raw string, r *remembered) {
	if m.young[raw] == nil {
		m.size += len(raw)
	}
	m.young[raw] = r
	if m.size > m.most {
		m.young, m.old, m.size = make(map[string]*remembered), m.young, 0
	}
}
