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

// check runs after the checks of the tenants, so that their skews are known.
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

// open makes the clock that all parts use. It reads the injected clocks of Options.
func (c *Clock) open(o Options) *clock.Clock {
	config := clock.Config{Now: o.Now, Elapsed: o.Elapsed, Remote: o.Remote, Bound: c.Bound, Logger: o.Logger}
	if o.Registry != nil { // a command has no registry
		config.Registerer = o.Registry
	}
	return clock.New(config)
}

// clocks returns the clocks of other machines.
func clocks(l *ledger.Ledger, g *guard.Guard, r Redis) (list []clock.Source) {
	if source, own := l.Clock(); own {
		list = append(list, source)
	}
	if !r.InProcess {
		list = append(list, clock.Source{Name: "redis", Ask: g.Time})
	}
	return list
}

// skews returns the skew of each tenant, which cut-offs of root tokens take into account.
func skews(tenants []exchange.Tenant) map[string]time.Duration {
	all := make(map[string]time.Duration, len(tenants))
	for _, t := range tenants {
		all[t.Name] = t.Trust.Skew()
	}
	return all
}
