package clock

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A reading of CLOCK_BOOTTIME is a system call. Between two readings Go's monotonic clock continues
// from the newest reading, unless the machine may have slept.
const (
	rereadAfter = 100 * time.Millisecond // of the monotonic clock
	// sleptIf: the wall clock moved by that much more or less than the monotonic clock.
	sleptIf = time.Millisecond
	exact   = 100 * time.Microsecond // a reading that took longer is not continued
)

// reading is a reading of CLOCK_BOOTTIME and the time at which it was made.
type reading struct {
	at   time.Time // by the wall clock and by the monotonic clock
	boot time.Duration
}

var newest atomic.Pointer[reading]

// elapsed includes the time that a machine sleeps, which Go's monotonic clock does not. A sleep
// that the wall clock does not show is included at most rereadAfter later.
func elapsed() time.Duration {
	now := time.Now()
	if r := newest.Load(); r != nil {
		if passed := now.Sub(r.at); r.continues(now, passed) {
			return r.boot + passed
		}
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Since(began)
	}
	boot := time.Duration(t.Nano())
	if time.Since(now) <= exact {
		newest.Store(&reading{at: now, boot: boot})
	}
	return boot
}

// continues reports whether the machine was awake since the reading.
func (r *reading) continues(now time.Time, passed time.Duration) bool {
	moved := time.Duration(now.UnixNano() - r.at.UnixNano())
	return 0 <= passed && passed < rereadAfter && max(moved-passed, passed-moved) < sleptIf
}

var began = time.Now()
