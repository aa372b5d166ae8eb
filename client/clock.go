package client

import "time"

// clockSkew is the largest difference between two correct clocks: the clock of this machine and the
// clock of the issuer, of a proof's holder, or of the ledger.
const clockSkew = 10 * time.Second

// clock reads two clocks. Operators and NTP can set the wall clock, forward and back. The monotonic
// clock cannot be set, but it may stop while the machine is suspended. It is always the clock of
// the runtime: an injected wall clock does not replace it.
type clock struct {
	injected func() time.Time // the wall clock; nil: time.Now
	began    time.Time        // by time.Now, for its monotonic reading
}

// clockOf makes a clock with the given wall clock; nil means time.Now.
func clockOf(wall func() time.Time) clock { return clock{injected: wall, began: time.Now()} }

// wall returns the time of the wall clock.
func (c clock) wall() time.Time {
	if c.injected != nil {
		return c.injected()
	}
	return time.Now()
}

func (c clock) now() instant {
	now := time.Now()
	at := instant{wall: now.Round(0), run: now.Sub(c.began)}
	if c.injected != nil {
		at.wall = c.injected().Round(0)
	}
	return at
}

// instant is a moment by both clocks. The zero instant is before every other one.
type instant struct {
	wall time.Time     // without a monotonic reading
	run  time.Duration // monotonic, since the clock was made
}

func (i instant) isZero() bool { return i.wall.IsZero() }

// since returns the longer of the two measured durations. It is the age of a value that must not be
// used for too long: neither a wall clock that is set back nor a suspended machine makes a value
// younger.
func (i instant) since(earlier instant) time.Duration {
	if earlier.isZero() {
		return i.wall.Sub(earlier.wall) // the longest possible duration
	}
	return max(i.wall.Sub(earlier.wall), i.ran(earlier))
}

// ran returns the duration by the monotonic clock alone. It is for timeouts and for values that
// must be kept long enough: no step of the wall clock makes it longer.
func (i instant) ran(earlier instant) time.Duration { return i.run - earlier.run }
