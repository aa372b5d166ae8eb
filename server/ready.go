package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
	"deputy.example/deputy/server/internal/panics"
)

const (
	// probeTimeout bounds one check of one dependency.
	probeTimeout = time.Second
	// probeAge is the greatest age of an answer. A dependency is not asked more often, at any rate
	// of readiness requests.
	probeAge = time.Second
	// probesPerSecond is how many of the tenants' policies, and how many of their keys, are checked
	// in one second where there are more. A good answer then counts for longer, so that each has
	// its turn. A bad answer never counts for longer than probeAge.
	probesPerSecond = 8
	// probesAtOnce bounds how many checks run at once. A check that waits for longer than
	// probeTimeout fails.
	probesAtOnce = 32
)

var errCrowded = errors.New("so many others did not answer that it could not be asked in time")

var errDraining = errors.New("draining")

// readiness checks what this instance needs before it can grant anything. Whether the keys of
// trusted issuers can be fetched is not part of it. A failing issuer must not make Deputy
// unavailable to the others, and exchanges of derived tokens need no issuer.
type readiness struct {
	probes   map[string]*probe
	draining atomic.Bool
}

func newReadiness(l *ledger.Ledger, g *guard.Guard, e *exchange.Engine) *readiness {
	r := &readiness{probes: map[string]*probe{
		"ledger": {check: func(ctx context.Context) error {
			if err := e.Standing(ctx); err != nil {
				return err
			}
			return l.Ready(ctx)
		}},
		"redis": {check: g.Ready},
		"clock": {memory: true, check: func(context.Context) error { return l.Trusted() }},
	}}
	age, gate := ageAmong(len(e.Tenants())), make(chan struct{}, probesAtOnce)
	for _, t := range e.Tenants() {
		r.probes["policy of "+t.Name] = &probe{age: age, gate: gate, check: t.Policy.Ready}
		r.probes["keys of "+t.Name] = &probe{age: age, gate: gate, check: func(context.Context) error {
			// The signature is discarded. It covers no claim that a verifier would accept.
			_, err := t.Keys.Sign([]byte("{}"))
			return err
		}}
		r.probes["revocations of "+t.Name] = &probe{memory: true, check: func(ctx context.Context) error { return e.Ready(ctx, t.Name) }}
		r.probes["checkpoints of "+t.Name] = &probe{memory: true, check: func(ctx context.Context) error { return e.Checkpointed(ctx, t.Name) }}
	}
	return r
}

// ageAmong returns how long a good answer counts if so many tenants share probesPerSecond.
func ageAmong(tenants int) time.Duration {
	return max(probeAge, time.Duration(tenants)*time.Second/probesPerSecond)
}

// checks returns the checks that /readyz shows, by name.
func (r *readiness) checks() map[string]func(context.Context) error {
	checks := map[string]func(context.Context) error{
		"serving": func(context.Context) error {
			if r.draining.Load() {
				return errDraining
			}
			return nil
		},
	}
	for name, p := range r.probes {
		checks[name] = p.ask
	}
	return checks
}

// ready runs all checks whose answers are out of date, at once.
func (r *readiness) ready(ctx context.Context) bool {
	var asking sync.WaitGroup
	var missing atomic.Bool
	for _, p := range r.probes {
		if err, known := p.known(ctx); !known {
			asking.Go(func() {
				if p.ask(ctx) != nil {
					missing.Store(true)
				}
			})
		} else if err != nil {
			missing.Store(true)
		}
	}
	asking.Wait()
	return !missing.Load() && !r.draining.Load()
}

// watch passes the current readiness to set until ctx ends, and then false. No call to set follows
// the last one, so no call can make a draining instance ready again.
func (r *readiness) watch(ctx context.Context, set func(bool)) {
	tick := time.NewTicker(probeAge)
	defer tick.Stop()
	for ctx.Err() == nil {
		set(r.ready(ctx))
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	r.draining.Store(true)
	set(false)
}

// probe is one check with its last answer.
type probe struct {
	check  func(context.Context) error
	memory bool          // the check answers from memory: no answer is kept
	age    time.Duration // how long a good answer counts; 0: probeAge
	gate   chan struct{} // shared by probes that may be many; nil: no limit

	mu    sync.Mutex // held during a check, so that concurrent callers share the answer
	until time.Time  // when the answer is out of date
	last  error
}

func (p *probe) ask(ctx context.Context) error {
	if p.memory {
		return p.try(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.until) {
		// The answer is for all callers: the first caller may cancel.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		before := p.last
		p.last = p.pass(ctx)
		p.until = time.Now().Add(p.counts(before != nil || p.until.IsZero()))
	}
	return p.last
}

// counts returns how long the last answer counts. Many probes may become good together, at the
// start or after an outage. Their times are then spread, so that some run in each second and detect
// the next outage.
func (p *probe) counts(anew bool) time.Duration {
	switch {
	case p.last != nil || p.age <= probeAge:
		return probeAge
	case anew:
		return max(probeAge, rand.N(p.age))
	}
	return p.age - rand.N(p.age/4)
}

// known returns the answer if no dependency has to be asked for it.
func (p *probe) known(ctx context.Context) (answer error, known bool) {
	if p.memory {
		return p.try(ctx), true
	}
	if !p.mu.TryLock() {
		return nil, false
	}
	defer p.mu.Unlock()
	return p.last, time.Now().Before(p.until)
}

// pass runs the check when the gate permits.
func (p *probe) pass(ctx context.Context) error {
	if p.gate == nil {
		return p.try(ctx)
	}
	select {
	case p.gate <- struct{}{}:
		defer func() { <-p.gate }()
		return p.try(ctx)
	case <-ctx.Done():
		return errCrowded
	}
}

func (p *probe) try(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the check: %w", panics.Of(r))
		}
	}()
	return p.check(ctx)
}
