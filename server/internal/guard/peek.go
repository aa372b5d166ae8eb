package guard

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"deputy.example/deputy/client/delegation"
)

// Peek is what a tenant's lists held at one moment, as far as one look shows it.
type Peek struct {
	fields []string // names and values in turn
	whole  bool     // these are all
	typed  bool     // list and events are what they should be, or are not there
	now    time.Time
	// Witness is what Redis remembers of the ledger itself.
	Witness Witness
}

// Peek reads the lists of several tenants in one round trip, and returns what it saw in their order.
// It is for many tenants with few revocations each. An error means that Redis did not answer.
func (g *Guard) Peek(ctx context.Context, tenants ...string) (peeks []Peek, err error) {
	defer g.observe("peek", time.Now(), &err)
	ctx, cancel := g.within(ctx)
	defer cancel()
	if peeks, err = g.store.look(ctx, tenants); err != nil {
		return nil, unavailable(err)
	}
	for i := range peeks {
		peeks[i].now = g.now()
	}
	return peeks, nil
}

// Right returns whether what was seen is exactly the live revocations, which are complete up to
// last, as Audit does. It is also false where one look does not show it: then Audit decides.
func (p Peek) Right(live []delegation.Revocation, last uint64) bool {
	if head, err := p.Head(); err != nil || head != last || len(p.fields) == 0 { // no list is less than an empty one
		return false
	}
	a := audit{want: fold(live), now: p.now}
	for i := 0; i+1 < len(p.fields); i += 2 {
		a.see(p.fields[i], p.fields[i+1])
	}
	a.finish()
	return !a.wrong && !a.doubtful
}

// Head is the number up to which the lists are complete, 0 if there are none. ErrGap: they are no
// lists, or too long to be seen at one look.
func (p Peek) Head() (uint64, error) {
	if !p.typed || !p.whole {
		return 0, ErrGap
	}
	for i := 0; i+1 < len(p.fields); i += 2 {
		if p.fields[i] == headField {
			head, err := strconv.ParseUint(p.fields[i+1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%w: the head is no number", ErrGap)
			}
			return head, nil
		}
	}
	if len(p.fields) > 0 {
		return 0, ErrGap
	}
	return 0, nil
}
