package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"deputy.example/deputy/client"
)

// sdk is what a resource server pays for each request. Times are microseconds of one goroutine.
type sdk struct {
	Setup    string  `json:"setup"`
	Round    int     `json:"round"`
	Bare     float64 `json:"bare_es256_us"`
	Uncached float64 `json:"uncached_us"`
	Cached   float64 `json:"cached_us"`
	Allocs   float64 `json:"cached_allocations"`
}

// verify measures the SDK's verifier, with real tokens and a live feed, against the bare signature
// check.
func (b *bench) verify(ctx context.Context, s *setup, round int) (result sdk, err error) {
	const again = 20_000
	tokens := max(min(500, b.requests), 2)
	on := s.session(s.deputies[0], 0)
	defer func() { err = errors.Join(err, on.close()) }()
	fresh, err := on.parents(ctx, depth, tokens)
	if err != nil {
		return sdk{}, err
	}
	v, err := on.verifier(ctx)
	if err != nil {
		return sdk{}, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if _, err := v.Verify(ctx, fresh[0].Reveal()); err != nil {
		return sdk{}, err
	}
	bare, err := bareVerification(tokens)
	if err != nil {
		return sdk{}, err
	}
	result = sdk{Setup: s.kind, Round: round + 1, Bare: us(bare)}
	took, _, err := verifyEach(ctx, v, fresh[1:], 1)
	if err != nil {
		return sdk{}, err
	}
	result.Uncached = us(took)
	took, result.Allocs, err = verifyEach(ctx, v, fresh[:1], again)
	result.Cached = us(took)
	fmt.Fprintf(b.progress, "%-46s bare %.1f µs, uncached %.1f µs, cached %.2f µs\n", fmt.Sprintf("%s, SDK, %d of %d", s.kind, round+1, b.rounds),
		result.Bare, result.Uncached, result.Cached)
	return result, errors.Join(err, ctx.Err())
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// verifyEach returns time and allocations of one verification. Secrets are revealed before.
func verifyEach(ctx context.Context, v *client.Verifier, secrets []client.Secret, times int) (each time.Duration, allocs float64, err error) {
	tokens := make([]string, len(secrets))
	for i, s := range secrets {
		tokens[i] = s.Reveal()
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for range times {
		for _, token := range tokens {
			if _, err := v.Verify(ctx, token); err != nil {
				return 0, 0, err
			}
		}
	}
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	n := times * len(tokens)
	return took / time.Duration(n), float64(after.Mallocs-before.Mallocs) / float64(n), nil
}

// bareVerification is the time of one ES256 verification and nothing else, in this process.
func bareVerification(times int) (time.Duration, error) {
	key, err := newSigner()
	if err != nil {
		return 0, err
	}
	token, err := key.sign("at+jwt", floorClaims(time.Now()))
	if err != nil {
		return 0, err
	}
	check, err := signatureCheck(&key.key.PublicKey, token)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for range times {
		if !check() {
			return 0, errors.New("the signature is not the key's")
		}
	}
	return time.Since(began) / time.Duration(times), nil
}
