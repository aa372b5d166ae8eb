package peers

import (
	"container/list"
	"context"
	"sync"
)

// Places bound how many calls of unauthenticated peers are open: in all, for one address and for one
// connection. Its methods are safe for concurrent use.
type Places struct {
	all, address, connection int // most that are taken

	mu    sync.Mutex // guards what follows, and the places
	taken list.List  // of *Place, the oldest first
	at    map[string]*list.List
	on    map[*Connection]int
}

// NewPlaces returns so many places in all, of which one address and one connection get so many.
func NewPlaces(all, address, connection int) *Places {
	return &Places{all: all, address: address, connection: connection, at: make(map[string]*list.List), on: make(map[*Connection]int)}
}

// Place is one of [Places].
type Place struct {
	of         *Places
	connection *Connection
	yield      func()
	all, at    *list.Element // nil after Leave
}

// Enter takes a place, which Leave gives back. It returns nil if the connection has all of its
// places.
//
// If the address or the instance has no place left, the oldest place is freed and its yield is
// called. Calls of honest peers are unauthenticated for milliseconds, so the oldest belong to a
// flood. A nil yield marks a call that may last: it keeps its place, and Enter returns nil.
func (p *Places) Enter(c *Connection, yield func()) *Place {
	entered, yielded := p.enter(c, yield)
	if yielded != nil {
		yielded()
	}
	return entered
}

func (p *Places) enter(c *Connection, yield func()) (entered *Place, yielded func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on[c] >= p.connection {
		return nil, nil
	}
	here := p.at[c.address]
	oldest := (*list.Element)(nil)
	switch {
	case here != nil && here.Len() >= p.address:
		oldest = here.Front()
	case p.taken.Len() >= p.all:
		oldest = p.taken.Front()
	}
	if oldest != nil {
		place := oldest.Value.(*Place)
		if place.yield == nil {
			return nil, nil
		}
		yielded = place.yield
		place.leave()
		here = p.at[c.address]
	}
	if here == nil {
		here = list.New()
		p.at[c.address] = here
	}
	entered = &Place{of: p, connection: c, yield: yield}
	entered.all, entered.at = p.taken.PushBack(entered), here.PushBack(entered)
	p.on[c]++
	return entered, yielded
}

// Leave gives the place back. A second call, and a call of a nil Place, do nothing.
func (p *Place) Leave() {
	if p == nil {
		return
	}
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.leave()
}

func (p *Place) leave() {
	if p.all == nil {
		return
	}
	here := p.of.at[p.connection.address]
	p.of.taken.Remove(p.all)
	here.Remove(p.at)
	p.all, p.at = nil, nil
	if here.Len() == 0 {
		delete(p.of.at, p.connection.address)
	}
	if p.of.on[p.connection]--; p.of.on[p.connection] == 0 {
		delete(p.of.on, p.connection)
	}
}

type placeKey struct{}

// Holding returns a context that carries the place of an unauthenticated call.
func Holding(ctx context.Context, p *Place) context.Context {
	return context.WithValue(ctx, placeKey{}, p)
}

// Known gives back the place that a context carries. Call it when the caller is authenticated.
func Known(ctx context.Context) {
	p, _ := ctx.Value(placeKey{}).(*Place)
	p.Leave()
}
