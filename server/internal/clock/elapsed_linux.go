package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// elapsed counts the time that a machine sleeps, which Go's monotonic clock does not.
func elapsed() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Since(began)
	}
	return time.Duration(t.Nano())
}

var began = time.Now()
