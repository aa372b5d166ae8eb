package server

import (
	"runtime/debug"
	"testing"
)

func TestGarbageIsTheOperatorsToDecide(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	for said, want := range map[string]int{"": garbagePercent, "50": 50, "off": 50} {
		debug.SetGCPercent(50) // as if the runtime had read GOGC
		t.Setenv("GOGC", said)
		collectLess()
		if got := debug.SetGCPercent(100); got != want {
			t.Errorf("with GOGC=%q: %d, want %d", said, got, want)
		}
	}
}
