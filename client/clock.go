package client

import "time"

// clockSkew is how far two clocks may be apart before one of them is called wrong: this machine's and the issuer's, a
// proof's and this machine's, this machine's and the ledger's.
const clockSkew = 10 * time.Second

// clock reads two clocks. The wall clock can be set, forward and back, by people and by NTP. The monotonic clock cannot,
// but it may stop while the machine is suspended. It is always the runtime's own: an injected wall clock replaces the
// first one only.
type clock struct {
	wall  func() time.Time
	began time.Time // by time.Now, for its monotonic reading
}

// clockOf makes a clock with the given wall clock; nil means time.Now.
func clockOf(wall func() time.Time) clock {
	if wall == nil {
		wall = time.Now
	}
	return clock{wall: wall, began: time.Now()}
}

func (c clock) now() instant {
	return instant{wall: c.wall().Round(0), run: time.Since(c.began)}
}

// instant is a moment by both clocks. The zero instant is longer ago than anything.
type instant struct {
	wall time.Time     // without a monotonic reading
	run  time.Duration // monotonic, since the clock was made
}

func (i instant) isZero() bool { return i.wall.IsZero() }

// since is the longer of the times that the two clocks measured. It is the age of what must not be believed for too long:
// a wall clock that is set back makes nothing younger, and neither does a suspended machine.
func (i instant) since(earlier instant) time.Duration {
	if earlier.isZero() {
		return i.wall.Sub(earlier.wall) // the longest duration that there is
	}
	return max(i.wall.Sub(earlier.wall), i.ran(earlier))
}

// ran is the time that the monotonic clock measured. Timeouts use it, and so does what must be remembered for long
// enough: no step of the wall clock makes it longer.
func (i instant) ran(earlier instant) time.Duration { return i.run - earlier.run }
