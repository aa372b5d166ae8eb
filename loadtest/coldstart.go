package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deputy.example/deputy/client"
)

// coldStart is a start from nothing. Times are milliseconds.
type coldStart struct {
	Setup      string  `json:"setup"`
	Round      int     `json:"round"`
	Ready      float64 `json:"ready_ms"`       // from the start of the process until it reports ready
	FirstGrant float64 `json:"first_grant_ms"` // from the start of the process until the first token
	First      latency `json:"first_100_ms"`   // of the hundred exchanges after that, eight at once

	Failures map[string]int `json:"failures,omitempty"`
}

// coldStart starts one more Deputy, and uses it at once: in the distributed set-up beside those
// that run, in the embedded one with a world of its own.
func (b *bench) coldStart(ctx context.Context, s *setup, round int) (_ coldStart, err error) {
	if s.kind == embedded {
		p := s.plan
		p.users, p.tenants, p.profiled = 1, 1, false
		if s, err = open(ctx, s.binaries, p); err != nil {
			return coldStart{}, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
	} else {
		n := len(s.deputies)
		if err := s.addDeputy(ctx); err != nil {
			return coldStart{}, err
		}
		defer func() {
			err = errors.Join(err, s.deputies[n].stop())
			s.deputies = s.deputies[:n]
		}()
	}
	d := s.deputies[len(s.deputies)-1]
	result := coldStart{Setup: s.kind, Round: round + 1, Ready: ms(time.Since(d.began))} // its database was migrated before
	on := s.session(d, 0)
	defer func() { err = errors.Join(err, on.close()) }()
	var parent client.Secret
	err = patiently(ctx, func() (err error) {
		parent, err = on.chain(ctx, person(0), 1)
		return err
	})
	if err != nil {
		return result, err
	}
	result.FirstGrant = ms(time.Since(d.began))
	r := newRecorder()
	stop := b.showProgress(fmt.Sprintf("%s, cold start, %d of %d", s.kind, round+1, b.rounds), r)
	closedLoop(ctx, r, 100, 8, func(ctx context.Context, i int) (string, error) {
		_, err := on.handDown(ctx, line(1), parent, worker(i))
		return granted, err
	})
	stop()
	result.First, result.Failures = latencyOf(r), r.failures
	return result, ctx.Err()
}
