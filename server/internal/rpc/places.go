package rpc

import (
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

// places are what an instance has room for: so many streams of one kind, and not all of them for one
// caller. Whoever has not been authenticated takes none.
type places struct {
	of    string // for the refusal
	limit int
	share int // of one owner

	mu    sync.Mutex // guards what follows
	taken int
	owned map[string]int // by owner
}

func newPlaces(of string, limit int) *places {
	return &places{of: of, limit: limit, share: limit / 2, owned: make(map[string]int)}
}

// enter takes a place, which leave gives back.
func (p *places) enter(owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.limit || p.owned[owner] >= p.share {
		full := delegation.Refuse(delegation.RateLimited, "", "this instance has as many %s as it takes, of all or of this caller", p.of)
		full.RetryAfter = time.Second
		return full
	}
	p.taken++
	p.owned[owner]++
	return nil
}

func (p *places) leave(owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.owned[owner]--; p.owned[owner] == 0 {
		delete(p.owned, owner)
	}
}
