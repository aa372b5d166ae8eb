package clock

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReadingContinues checks when the monotonic clock continues from a reading: never across a
// sleep, which only the wall clock shows, and never for long.
func TestReadingContinues(t *testing.T) {
	at := time.Now()
	for name, c := range map[string]struct {
		passed, moved time.Duration
		want          bool
	}{
		"at once":                     {0, 0, true},
		"awake":                       {50 * time.Millisecond, 50 * time.Millisecond, true},
		"too long ago":                {rereadAfter, rereadAfter, false},
		"slept for an hour":           {time.Millisecond, time.Hour, false},
		"slept for a moment":          {time.Millisecond, time.Millisecond + sleptIf, false},
		"the wall clock was set back": {time.Millisecond, -time.Hour, false},
		"before the reading":          {-1, -1, false},
	} {
		r := &reading{at: at}
		// Without its monotonic reading, the time moves by what the wall clock shows.
		if got := r.continues(at.Round(0).Add(c.moved), c.passed); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestElapsedFollowsTheBootClock compares continued readings with those of the system.
func TestElapsedFollowsTheBootClock(t *testing.T) {
	for range 1000 {
		before := bootTime(t)
		got := elapsed()
		after := bootTime(t)
		if got < before-exact || got > after+exact {
			t.Fatalf("elapsed is %v, between %v and %v of the system", got, before, after)
		}
	}
}

func bootTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

func BenchmarkElapsed(b *testing.B) {
	for b.Loop() {
		elapsed()
	}
}
