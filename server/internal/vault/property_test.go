package vault

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"deputy.example/deputy/server/internal/testservers"
)

// The faults of the simulation.
const (
	apart   = 20 * time.Second // clocks, from the true time
	behind  = 4 * time.Minute  // maximum age of an instance's reading: less than Stale, and than Ahead
	longest = 15 * time.Minute // life of a token
)

var hasty = Plan{
	Tenant: "acme", Use: Tokens, Algorithm: "ES256",
	Rotate: 40 * time.Minute, Ahead: 10 * time.Minute, Lifetime: longest,
}

type simulated struct {
	instance
	off  time.Duration // of its clock
	read time.Time     // true time
}

type issued struct {
	kid string
	exp time.Time
}

// simulate lets three instances issue and verify tokens for hours, while keys rotate on schedule
// and by hand. It returns the first token in force that an instance refused.
func simulate(t *testing.T, seed uint64, kms KMS, plan Plan) (rotations int, refused error) {
	random := rand.New(rand.NewPCG(seed, 0))
	within := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	store, clock := &table{}, newClock()
	var fleet []*simulated
	for range 3 {
		off := within(2*apart) - apart
		now := func() time.Time { return clock.now().Add(off) }
		fleet = append(fleet, &simulated{begin(t, store, kms, now, plan), off, clock.now()})
	}
	var out []issued
	for range 250 {
		now := clock.add(within(2 * time.Minute))
		for _, i := range fleet {
			if random.IntN(3) == 0 || now.Sub(i.read) > behind {
				i.round(t)
				i.read = now
			}
		}
		i := fleet[random.IntN(len(fleet))]
		if random.IntN(40) == 0 {
			_, _ = i.Rotate(t.Context(), "acme", Tokens, false) // or returns that one is under way
			i.read = now
		}
		out = append(out, issued{i.signs(t), now.Add(i.off).Add(within(longest))})
		for _, v := range fleet {
			set, err := v.series.Now()
			if err != nil {
				return 0, err
			}
			for _, token := range out {
				inForce := now.Add(v.off).Before(token.exp)
				if inForce && !slices.ContainsFunc(set.Keys, func(h Held[string]) bool { return h.ID == token.kid }) {
					return 0, fmt.Errorf("a token of %s is refused %v before its end", token.kid, token.exp.Sub(now))
				}
			}
		}
		out = slices.DeleteFunc(out, func(k issued) bool { return now.Sub(k.exp) > apart })
	}
	return len(store.rows) - 1, nil
}

// TestEveryTokenInForceVerifies is the guarantee of a rotation: at any instant, every token in
// force verifies at every instance that has read the table within the last minutes.
func TestEveryTokenInForceVerifies(t *testing.T) {
	kms, _ := newKMS(t, 1)
	seed, runs, rotations := testservers.Seed(t), testservers.Campaign(2000, 60), 0
	for n := range uint64(runs) {
		made, err := simulate(t, seed+n, kms, hasty)
		if err != nil {
			t.Fatalf("seed %d: %v", seed+n, err)
		}
		rotations += made
	}
	t.Logf("%d runs with %d rotations", runs, rotations)
	if rotations < 3*runs {
		t.Errorf("only %d rotations: nothing was tried", rotations)
	}

	// The controls: a key that signs when it is published, and one that is retired when the next
	// signs.
	unpublished, shortlived := hasty, hasty
	unpublished.Ahead, shortlived.Lifetime = 0, -margin
	for name, plan := range map[string]Plan{"unpublished": unpublished, "shortlived": shortlived} {
		found := 0
		for n := range uint64(20) {
			if _, err := simulate(t, seed+n, kms, plan); err != nil {
				found++
			}
		}
		if found < 15 {
			t.Errorf("%s: refusals in %d of 20 runs: the check cannot fail", name, found)
		}
	}
}
