package peers

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
)

// Places bound how many calls of unauthenticated peers are open: in all, for one address and for one
// connection. Its methods are safe for concurrent use.
type Places struct {
	all, address, connection int // most that are taken
	lasting                  bool

	mu    sync.Mutex // guards what follows, and the places
	taken list.List  // of *Place, the oldest first
	at    map[string]*list.List
	on    map[*Connection]int
}

// NewPlaces returns places for calls that are soon over: so many in all, of which one address and one
// connection get so many. If the address or the instance has no place left, the oldest place is
// freed for the next call. Calls of honest peers are unauthenticated for milliseconds, so the oldest
// belong to a flood.
func NewPlaces(all, address, connection int) *Places {
	return &Places{all: all, address: address, connection: connection, at: make(map[string]*list.List), on: make(map[*Connection]int)}
}

// NewLasting returns places for calls that may last. Such a call keeps its place, unless the instance
// has no place left: then the oldest place of the address that has most is freed for the call of an
// address that has fewer, so that a few addresses cannot have all places.
func NewLasting(all, address, connection int) *Places {
	p := NewPlaces(all, address, connection)
	p.lasting = true
	return p
}

// Place is one of [Places].
type Place struct {
	of         *Places
	connection *Connection
	yield      func()
	all, at    *list.Element // nil after Leave
	known      atomic.Bool
}

// Enter takes a place, which Leave gives back. It returns nil if there is none. If that is for the
// part of the connection or of its address, it counts against the connection. If a place is freed
// for this call, the yield of that place is called.
func (p *Places) Enter(c *Connection, yield func()) *Place {
	entered, freed, own := p.enter(c, yield)
	if freed != nil {
		freed.yield()
	}
	if own {
		c.Crowded()
	}
	return entered
}

func (p *Places) enter(c *Connection, yield func()) (entered, freed *Place, own bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.on[c] >= p.connection {
		return nil, nil, true
	}
	here := p.at[c.address]
	var oldest *list.Element
	switch {
	case here != nil && here.Len() >= p.address:
		if p.lasting {
			return nil, nil, true
		}
		oldest = here.Front()
	case p.taken.Len() >= p.all:
		if oldest = p.oldest(here); oldest == nil {
			return nil, nil, false
		}
	}
	if oldest != nil {
		freed = oldest.Value.(*Place)
		freed.leave()
		here = p.at[c.address]
	}
	if here == nil {
		here = list.New()
		p.at[c.address] = here
	}
	entered = &Place{of: p, connection: c, yield: yield}
	entered.all, entered.at = p.taken.PushBack(entered), here.PushBack(entered)
	p.on[c]++
	return entered, freed, false
}

// oldest returns the place that is freed for an address when all are taken, or nil.
func (p *Places) oldest(here *list.List) *list.Element {
	if !p.lasting {
		return p.taken.Front()
	}
	most := 1 // an address with one more would only swap with the other
	if here != nil {
		most += here.Len()
	}
	var oldest *list.Element
	for _, there := range p.at {
		if there.Len() > most {
			oldest, most = there.Front(), there.Len()
		}
	}
	return oldest
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
	if p != nil {
		p.known.Store(true)
	}
	p.Leave()
}

// Authenticated reports whether [Known] was called for the call that has or had the place. It is
// false for a nil Place.
func (p *Place) Authenticated() bool { return p != nil && p.known.Load() }
