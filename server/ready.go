package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"deputy.example/deputy/server/internal/exchange"
	"deputy.example/deputy/server/internal/guard"
	"deputy.example/deputy/server/internal/ledger"
)

const (
	// probeTimeout bounds one look at one dependency.
	probeTimeout = time.Second
	// probeAge is how old an answer may be. However often readiness is asked for, a dependency is
	// not asked more often.
	probeAge = time.Second
)

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
		"ledger": {check: l.Ready},
		"redis":  {check: g.Ready},
	}}
	for _, t := range e.Tenants() {
		r.probes["policy of "+t.Name] = &probe{check: t.Policy.Ready}
		r.probes["keys of "+t.Name] = &probe{check: func(context.Context) error {
			_, err := t.Keys.Sign([]byte("{}")) // thrown away; holds no claim that a verifier would accept
			return err
		}}
		r.probes["revocations of "+t.Name] = &probe{check: func(ctx context.Context) error { return e.Ready(ctx, t.Name) }}
		r.probes["checkpoints of "+t.Name] = &probe{check: func(ctx context.Context) error { return e.Checkpointed(ctx, t.Name) }}
	}
	return r
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

// ready asks everything at once.
func (r *readiness) ready(ctx context.Context) bool {
	var asking sync.WaitGroup
	var missing atomic.Bool
	for _, check := range r.checks() {
		asking.Go(func() {
			if check(ctx) != nil {
				missing.Store(true)
			}
		})
	}
	asking.Wait()
	return !missing.Load()
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
	check func(context.Context) error

	mu   sync.Mutex // held while asking, so that whoever comes meanwhile shares the answer
	at   time.Time
	last error
}

func (p *probe) ask(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.at) >= probeAge {
		// The answer is for everybody: whoever asked first may go away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		p.last = p.try(ctx)
		p.at = time.Now()
	}
	return p.last
}

func (p *probe) try(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the check panicked: %v", r)
		}
	}()
	return p.check(ctx)
}
