package exchange

import (
	"sync"
	"time"

	"deputy.example/deputy/client/delegation"
)

const (
	// MaxWatchers is the number of verifiers that watch one instance, whatever connections they
	// share. With more than half as many tenants, each tenant has one place more.
	MaxWatchers = 2000
	// maxTails is the number of streams of entries of one instance, for programs and for the live
	// page together. Each stream asks the ledger four times a second.
	maxTails = 128
)

// places are the places of an instance for long-lived calls of one kind. Half of them are reserved
// for the tenants in equal parts, which no other tenant can take. The other half is a pool for
// tenants that need more. One caller gets only a part of what its tenant can get. A caller that may
// not make the call takes none.
type places struct {
	of       string        // for the refusal
	retry    time.Duration // the retry interval in the refusal
	reserved int           // of each tenant
	pool     int           // for tenants that have taken what is reserved for them
	share    int           // of one caller

	mu      sync.Mutex // guards what follows
	pooled  int
	tenants map[string]int
	callers map[owner]int
}

type owner struct {
	tenant string
	caller delegation.Principal
}

// newPlaces divides limit places among this number of tenants. A caller gets at most 1/parts of
// what its tenant can get.
func newPlaces(of string, limit, tenants, parts int, retry time.Duration) *places {
	p := &places{
		of: of, retry: retry, reserved: max(1, limit/2/max(1, tenants)), pool: limit / 2,
		tenants: make(map[string]int), callers: make(map[owner]int),
	}
	p.share = max(1, (p.reserved+p.pool)/parts)
	return p
}

// enter takes a place for a caller that may make the call. leave gives the place back; a second
// call does nothing. The error is RateLimited if no place is free.
func (p *places) enter(tenant string, caller delegation.Principal) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := owner{tenant, caller}
	more := p.tenants[tenant] >= p.reserved
	if p.callers[o] >= p.share || more && p.pooled >= p.pool {
		full := delegation.Refuse(delegation.RateLimited, "", "this instance has as many %s as it takes, of this tenant or of this caller", p.of)
		full.RetryAfter = p.retry
		return nil, full
	}
	if more {
		p.pooled++
	}
	p.tenants[tenant]++
	p.callers[o]++
	return sync.OnceFunc(func() { p.leave(o) }), nil
}

func (p *places) leave(o owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tenants[o.tenant] > p.reserved {
		p.pooled--
	}
	if p.tenants[o.tenant]--; p.tenants[o.tenant] == 0 {
		delete(p.tenants, o.tenant)
	}
	if p.callers[o]--; p.callers[o] == 0 {
		delete(p.callers, o)
	}
}
