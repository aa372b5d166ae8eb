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
	// probeTimeout bounds one look at one dependency.
	probeTimeout = time.Second
	// probeAge is how old an answer may be. However often readiness is asked for, a dependency is
	// not asked more often.
	probeAge = time.Second
	// probesPerSecond is how many of the tenants' policies, and how many of their keys, are asked for in a
	// second where there are more: a good answer then counts for longer, so that all have their turn. A bad
	// one never counts for longer than probeAge.
	probesPerSecond = 8
	// probesAtOnce bounds how many are under way. Who has to wait for longer than probeTimeout is as good as missing.
	probesAtOnce = 32
)

var errCrowded = errors.New("so many others did not answer that it could not be asked in time")

var errDraining = errors.New("draining")

// readiness knows what this instance needs before it can grant anything. Whether the keys of trusted
// issuers can be fetched is not part of it: what an issuer serves must not take Deputy away from all
// the others, and exchanges of derived tokens need none of it.
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
			_, err := t.Keys.Sign([]byte("{}")) // thrown away; holds no claim that a verifier would accept
			return err
		}}
		r.probes["revocations of "+t.Name] = &probe{memory: true, check: func(ctx context.Context) error { return e.Ready(ctx, t.Name) }}
		r.probes["checkpoints of "+t.Name] = &probe{memory: true, check: func(ctx context.Context) error { return e.Checkpointed(ctx, t.Name) }}
	}
	return r
}

// ageAmong is for how long a good answer counts if so many tenants share probesPerSecond.
func ageAmong(tenants int) time.Duration {
	return max(probeAge, time.Duration(tenants)*time.Second/probesPerSecond)
}

// checks are the names and questions that /readyz shows.
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

// ready asks everything at once that has to be asked again.
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

// watch tells set how things stand until ctx ends, and then that this instance is not ready. No call
// to set comes after the last one, so nothing can revive a draining instance.
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

// probe is one question with its last answer.
type probe struct {
	check  func(context.Context) error
	memory bool          // the check answers at once: nothing is kept
	age    time.Duration // for how long a good answer counts; 0: probeAge
	gate   chan struct{} // shared by probes that may be many; nil: goes at once

	mu    sync.Mutex // held while asking, so that whoever comes meanwhile shares the answer
	until time.Time  // when to ask again
	last  error
}

func (p *probe) ask(ctx context.Context) error {
	if p.memory {
		return p.try(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.until) {
		// The answer is for everybody: whoever asked first may go away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		before := p.last
		p.last = p.pass(ctx)
		p.until = time.Now().Add(p.counts(before != nil || p.until.IsZero()))
	}
	return p.last
}

// counts is for how long the last answer does. Many probes that became good together, at the start or after an
// outage, part company: in each second some are asked, and will notice the next outage.
func (p *probe) counts(anew bool) time.Duration {
	switch {
	case p.last != nil || p.age <= probeAge:
		return probeAge
	case anew:
		return max(probeAge, rand.N(p.age))
	}
	return p.age - rand.N(p.age/4)
}

// known is the answer where nobody has to be asked for it.
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

// pass asks when it is its turn.
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
