package sim

import (
	"container/heap"
	"time"
)

// happening is the action of an event.
type happening interface{ happen() }

// event is a moment at which an action happens. A type with at most one at a time embeds it.
type event struct {
	when  time.Duration // since the beginning
	order uint64        // among events of the same moment: in the order in which they were made
	what  happening
}

// agenda is virtual time, and all pending actions. No clock is read.
type agenda struct {
	now     time.Duration
	made    uint64
	happens uint64 // how much has happened
	pending pending
}

// add has e happen at a moment that is not past.
func (a *agenda) add(when time.Duration, e *event) {
	a.made++
	e.when, e.order = max(when, a.now), a.made
	heap.Push(&a.pending, e)
}

// call has f happen at a moment.
func (a *agenda) call(when time.Duration, f func()) { a.add(when, &event{what: doing(f)}) }

type doing func()

func (f doing) happen() { f() }

// until lets everything happen that is due by then, and stops at that moment.
func (a *agenda) until(end time.Duration) {
	for len(a.pending) > 0 && a.pending[0].when <= end {
		e := heap.Pop(&a.pending).(*event)
		a.now = e.when
		a.happens++
		e.what.happen()
	}
	a.now = end
}

// pending is a heap: the earliest first, the one made first among those of one moment.
type pending []*event

func (p pending) Len() int { return len(p) }
func (p pending) Less(i, j int) bool {
	return p[i].when < p[j].when || p[i].when == p[j].when && p[i].order < p[j].order
}
func (p pending) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *pending) Push(e any)   { *p = append(*p, e.(*event)) }
func (p *pending) Pop() any {
	last := len(*p) - 1
	e := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	return e
}
