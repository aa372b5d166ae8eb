package guard

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"deputy.example/deputy/client/delegation"
)

const (
	// aloneShare is the part of its rate and burst that a caller has at one instance while Redis does
	// not answer: what it uses at the others is not known then.
	aloneShare = 4
	// mostAlone is how many callers of one tenant an instance limits by itself at the same time.
	mostAlone = 1024
)

// alone limits callers by what this instance sees of them. Each tenant has its own bound, and tenants
// are sections of the configuration.
type alone struct {
	mu      sync.Mutex
	tenants map[string]map[delegation.Principal]*rate.Limiter
}

// AdmitOrLimit is Admit with a cost of 1 for calls that must not fail because Redis does not answer:
// those that revoke, and those that read. While Redis does not answer, or takes more than half of
// Timeout, this instance limits the caller by itself, to a quarter of its rate and burst. Then uses
// are not checked here: the row in the ledger decides on each of them in any case.
func (g *Guard) AdmitOrLimit(ctx context.Context, tenant string, caller delegation.Principal, l Limit, uses ...Use) (err error) {
	asked, cancel := context.WithTimeout(ctx, g.timeout/2)
	defer cancel()
	err = g.Admit(asked, tenant, caller, 1, l, uses...)
	if refusal := delegation.AsError(err); refusal == nil || refusal.Reason != delegation.DependencyDown || ctx.Err() != nil {
		return err
	}
	defer g.observe("limit", time.Now(), &err)
	return g.alone.take(tenant, caller, l, g.now())
}

// LimitUndecided limits, by what this instance sees, how often something is done for calls that Admit
// could not decide. The limit is that of AdmitOrLimit, counted apart from it.
func (g *Guard) LimitUndecided(tenant string, caller delegation.Principal, l Limit) error {
	return g.undecided.take(tenant, caller, l, g.now())
}

func (a *alone) take(tenant string, caller delegation.Principal, l Limit, now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	reserved := a.limiter(tenant, caller, l, now).ReserveN(now, 1)
	wait := reserved.DelayFrom(now)
	if wait <= 0 {
		return nil
	}
	reserved.CancelAt(now)
	refusal := delegation.Refuse(delegation.RateLimited, "", "the caller's limit at this instance, while Redis does not answer, is used up")
	refusal.RetryAfter = wait
	return refusal
}

// limiter returns the caller's limiter. Beyond mostAlone a new caller takes over the fullest limiter as
// it is: all callers together get no more than mostAlone callers do, and no caller is refused for ever.
func (a *alone) limiter(tenant string, caller delegation.Principal, l Limit, now time.Time) *rate.Limiter {
	callers := a.tenants[tenant]
	if limiter := callers[caller]; limiter != nil {
		return limiter
	}
	if callers == nil {
		callers = make(map[delegation.Principal]*rate.Limiter)
		if a.tenants == nil {
			a.tenants = make(map[string]map[delegation.Principal]*rate.Limiter)
		}
		a.tenants[tenant] = callers
	}
	limiter := rate.NewLimiter(rate.Limit(max(1, l.Rate/aloneShare)), max(1, l.Burst/aloneShare))
	if len(callers) >= mostAlone {
		limiter = evictFullest(callers, now)
	}
	callers[caller] = limiter
	return limiter
}

// evictFullest removes the caller that has used the least of its limit, and returns its limiter.
func evictFullest(callers map[delegation.Principal]*rate.Limiter, now time.Time) (fullest *rate.Limiter) {
	var evicted delegation.Principal
	for name, limiter := range callers {
		if fullest == nil || limiter.TokensAt(now) > fullest.TokensAt(now) {
			evicted, fullest = name, limiter
		}
	}
	delete(callers, evicted)
	return fullest
}
