package token

import (
	"strings"
	"sync"
	"sync/atomic"
)

// Memory remembers authentic tokens, so that a repeated token (a workload's, an actor's, a parent
// with many children) is read and its signature verified once. The remembered parts cannot change:
// the exact bytes, the claims, and the key that verified them. Everything that can change is
// checked each time: whether the key is still the issuer's, the time, audiences, conditions and
// revocations. So a token that expires or whose key is removed is refused here too.
//
// It is safe for concurrent use and may serve several tenants.
type Memory struct {
	most int // maximum bytes of tokens in one generation

	mu         sync.Mutex // guards what follows
	young, old map[string]*remembered
	size       int // bytes of the tokens in young
}

// remembered is a presented token that was authentic at least once.
type remembered struct {
	presented
	by atomic.Pointer[publicKey] // the key that verified it last
}

// DefaultMemory is the maximum number of remembered token bytes. The parsed tokens take several
// times as much.
const DefaultMemory = 8 << 20

// NewMemory remembers up to so many bytes of tokens; 0: none.
func NewMemory(bytes int) *Memory {
	return &Memory{most: bytes / 2, young: make(map[string]*remembered)}
}

// recall returns the remembered token with exactly these bytes, or nil.
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

// keep remembers a token that the key verified. It copies the token, because the received string
// may be part of a much larger one.
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

// put needs m.mu. It forgets tokens that were not recalled while a whole generation of others came.
func (m *Memory) put(raw string, r *remembered) {
	if m.young[raw] == nil {
		m.size += len(raw)
	}
	m.young[raw] = r
	if m.size > m.most {
		m.young, m.old, m.size = make(map[string]*remembered), m.young, 0
	}
}
