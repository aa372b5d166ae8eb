package testservers

import (
	"os"
	"strconv"
	"testing"
)

// Campaign chooses between the rounds of `make campaign`, which sets DEPUTY_CAMPAIGN=full, and
// those of an ordinary `make test`.
func Campaign(full, reduced int) int {
	if os.Getenv("DEPUTY_CAMPAIGN") == "full" {
		return full
	}
	return reduced
}

// Seed returns the seed for a test's random choices: DEPUTY_SEED, or 1. It is logged, so that a
// failure can be repeated.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	if s := os.Getenv("DEPUTY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DEPUTY_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("DEPUTY_SEED=%d", seed)
	return seed
}
