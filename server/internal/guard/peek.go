package guard

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"deputy.example/deputy/client/delegation"
)

// Peek is what a tenant's lists said at one moment, as far as one look shows it.
type Peek struct {
	fields []string // names and values in turn
	whole  bool     // these are all
	typed  bool     // list and events are what they should be, or are not there
	now    time.Time
	// Witness is what Redis remembers of the ledger itself.
	Witness Witness
}

// Peek looks at the lists of several tenants in one round trip, and returns in their order what it saw. It is
// for many tenants with few revocations each: two short commands for a tenant. An error means that Redis did
// not answer.
func (g *Guard) Peek(ctx context.Context, tenants ...string) (peeks []Peek, err error) {
	defer g.observe("peek", time.Now(), &err)
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	pipe := g.client.Pipeline()
	lists, events := make([]*redis.ScanCmd, len(tenants)), make([]*redis.StatusCmd, len(tenants))
	witnesses := make([]*redis.MapStringStringCmd, len(tenants))
	for i, tenant := range tenants {
		n := listsOf(tenant)
		lists[i], events[i] = pipe.HScan(ctx, n.list, 0, "", chunk), pipe.Type(ctx, n.events)
		witnesses[i] = pipe.HGetAll(ctx, witnessKey(tenant))
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	peeks = make([]Peek, len(tenants))
	for i := range tenants {
		p := Peek{typed: !wrongType(lists[i].Err()), now: g.now()}
		if p.typed {
			if err := errors.Join(lists[i].Err(), events[i].Err()); err != nil {
				return nil, delegation.Unavailable(dependency, err)
			}
			var cursor uint64
			p.fields, cursor = lists[i].Val()
			p.whole = cursor == 0
			p.typed = events[i].Val() == "stream" || events[i].Val() == "none"
		}
		if p.Witness, err = readWitness(witnesses[i]); err != nil {
			return nil, delegation.Unavailable(dependency, err)
		}
		peeks[i] = p
	}
	return peeks, nil
}

// Right says whether what was seen is exactly what the live revocations say, which are complete up to last, as
// Audit does. It says false as well where one look does not show it: then Audit knows.
func (p Peek) Right(live []delegation.Revocation, last uint64) bool {
	if head, err := p.Head(); err != nil || head != last || len(p.fields) == 0 { // no list says less than an empty one
		return false
	}
	a := audit{want: fold(live), now: p.now}
	for i := 0; i+1 < len(p.fields); i += 2 {
		a.see(p.fields[i], p.fields[i+1])
	}
	a.finish()
	return !a.wrong && !a.doubtful
}

// Head is the number up to which the lists are complete, 0 if there are none. ErrGap: they are no lists, or
// too long to be seen at one look.
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
