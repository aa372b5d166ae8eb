package server

import (
	"cmp"
	"time"

	"deputy.example/deputy/server/internal/clock"
	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/token"
)

// check runs after the tenants', so that their skews are known.
func (c *Clock) check(p *problems, tenants []Tenant) {
	skew := token.DefaultSkew
	for i, t := range tenants {
		if of := cmp.Or(t.Skew, token.DefaultSkew); i == 0 || of < skew {
			skew = of
		}
	}
	if c.Bound > skew {
		p.add("clock.bound", "must not be longer than the skew of any tenant, of which the shortest is %s: make it shorter", short(skew))
	}
	between(p, "clock.bound", &c.Bound, min(clock.DefaultBound, skew), min(100*time.Millisecond, skew), max(c.Bound, skew))
}

// open makes the clock that all parts go by, and that goes by the injected ones.
func (c *Clock) open(o Options) *clock.Clock {
	config := clock.Config{Now: o.Now, Elapsed: o.Elapsed, Remote: o.Remote, Bound: c.Bound, Logger: o.Logger}
	if o.Registry != nil { // a command has none
		config.Registerer = o.Registry
	}
	return clock.New(config)
}

// clocks are those of other machines.
func clocks(l *ledger.Ledger, g *guard.Guard, r Redis) (list []clock.Source) {
	if source, own := l.Clock(); own {
		list = append(list, source)
	}
	if !r.InProcess {
		list = append(list, clock.Source{Name: "redis", Ask: g.Time})
	}
	return list
}

// skews are the tenants', by which cut-offs of root tokens go.
func skews(tenants []exchange.Tenant) map[string]time.Duration {
	all := make(map[string]time.Duration, len(tenants))
	for _, t := range tenants {
		all[t.Name] = t.Trust.Skew()
	}
	return all
}
