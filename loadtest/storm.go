package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// storm is what happened to revocations that ran beside exchanges. Times are milliseconds, from the
// acknowledgement.
type storm struct {
	Setup       string  `json:"setup"`
	Round       int     `json:"round"`
	Revocations int     `json:"revocations"`
	PerSecond   float64 `json:"per_second"`
	Verifiers   int     `json:"verifiers"`
	Refusal     latency `json:"refusal_ms"` // at each verifier: until it refuses
	Revoke      latency `json:"revoke_ms"`  // of the call itself
	Exchange    latency `json:"exchange_ms"`
	Exchanges   int     `json:"exchanges"`
	// Accepted counts exchanges of a revoked token that were granted after the acknowledgement. Any
	// is a fault.
	Accepted int `json:"accepted_after_acknowledgement"`
	// Unheard counts verifiers that accepted a revoked token, or had no state, until the time
	// limit.
	Unheard  int            `json:"unheard"`
	Failures map[string]int `json:"failures,omitempty"`
}

const (
	stormVerifiers = 8
	// stormAtOnce is how many responders revoke at the same time.
	stormAtOnce = 8
	// refusedWithin is when a verifier that still accepts is given up on: beyond any bound.
	refusedWithin = 10 * time.Second
)

// revocationStorm revokes tokens, some concurrently, while exchanges run. Connected verifiers have
// accepted each token before. From the acknowledgement on they verify it until they refuse it.
func (b *bench) revocationStorm(ctx context.Context, s *setup, round, revocations int) (_ storm, err error) {
	on := s.session(s.deputies[0], 0)
	verifiers := make([]*client.Verifier, 0, stormVerifiers)
	defer func() {
		for _, v := range verifiers {
			err = errors.Join(err, v.Close())
		}
		err = errors.Join(err, on.close())
	}()
	victims, err := on.parents(ctx, depth, revocations)
	if err != nil {
		return storm{}, err
	}
	var do operation
	err = patiently(ctx, func() (err error) {
		do, err = fanOut.prepare(ctx, on, 0)
		return err
	})
	if err != nil {
		return storm{}, err
	}
	for range stormVerifiers {
		v, err := on.verifier(ctx)
		if err != nil {
			return storm{}, err
		}
		verifiers = append(verifiers, v)
	}
	responder, err := on.as(responder)
	if err != nil {
		return storm{}, err
	}
	exchanges, refusals, calls := newRecorder(), newRecorder(), newRecorder()
	result := storm{Setup: s.kind, Round: round + 1, Revocations: revocations, Verifiers: stormVerifiers}
	stop := b.showProgress(fmt.Sprintf("%s, revocation storm, %d of %d", s.kind, round+1, b.rounds), exchanges)
	background, end := context.WithCancel(ctx)
	var load sync.WaitGroup
	load.Go(func() { closedLoop(background, exchanges, 1<<40, b.atOnce/2+1, endless(background, do)) })
	began := time.Now()
	var accepted, unheard atomic.Int64
	responders, striking := errgroup.WithContext(ctx)
	responders.SetLimit(stormAtOnce)
	for _, victim := range victims {
		responders.Go(func() error {
			dead, err := on.strike(striking, responder, verifiers, victim, calls, refusals, &unheard)
			if !dead {
				accepted.Add(1)
			}
			return err
		})
	}
	err = responders.Wait()
	result.Accepted, result.Unheard = int(accepted.Load()), int(unheard.Load())
	result.PerSecond = float64(calls.done) / time.Since(began).Seconds()
	end()
	load.Wait()
	stop()
	result.Refusal, result.Revoke, result.Exchange = latencyOf(refusals), latencyOf(calls), latencyOf(exchanges)
	result.Exchanges, result.Failures = exchanges.done, exchanges.failures
	return result, errors.Join(err, ctx.Err())
}

// endless takes the end of the measurement for no failure of the request that was under way.
func endless(ctx context.Context, do operation) operation {
	return func(_ context.Context, i int) (string, error) {
		return do(context.WithoutCancel(ctx), i)
	}
}

// knowsBetter returns whether a verifier refused because of the token. One without state refuses
// everything, which does not prove that it received the revocation.
func knowsBetter(err error) bool {
	refusal, refused := errors.AsType[*client.AccessError](err)
	return refused && refusal.Code == client.AccessInvalidToken
}

// strike revokes one token and measures when it takes effect. It has taken effect if its exchange
// was refused from the acknowledgement on. An unacknowledged revocation is an error and counts too.
func (s *session) strike(ctx context.Context, c *client.Client, verifiers []*client.Verifier, victim client.Secret, calls, refusals *recorder, unheard *atomic.Int64) (dead bool, err error) {
	for _, v := range verifiers {
		if _, err := v.Verify(ctx, victim.Reveal()); err != nil {
			return true, fmt.Errorf("before it is revoked: %w", err)
		}
	}
	sent := time.Now()
	err = patiently(ctx, func() error { // as any responder's client does
		_, err := c.Revoke(ctx, client.RevokeRequest{Target: client.RevokeToken(victim), Reason: "load test"})
		return err
	})
	acknowledged := time.Now()
	calls.record(acknowledged.Sub(sent), granted, err)
	if err != nil {
		return true, err
	}
	var watching sync.WaitGroup
	for _, v := range verifiers {
		watching.Go(func() {
			for {
				if _, err := v.Verify(ctx, victim.Reveal()); knowsBetter(err) {
					break
				}
				if time.Since(acknowledged) > refusedWithin {
					unheard.Add(1)
					break
				}
				select { // far finer than what is measured, and it leaves the processor to the measured
				case <-ctx.Done():
					unheard.Add(1)
					return
				case <-time.After(200 * time.Microsecond):
				}
			}
			refusals.record(time.Since(acknowledged), granted, nil)
		})
	}
	_, err = s.handDown(ctx, line(depth), victim, worker(0))
	watching.Wait()
	if err == nil {
		return false, nil
	}
	if refusal := delegation.AsError(err); refusal.Reason != delegation.TokenRevoked && !refusal.Temporary() {
		return true, fmt.Errorf("a revoked token was refused for another reason: %w", err)
	}
	return true, nil
}
