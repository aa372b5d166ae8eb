package server

import (
	"os"
	"runtime/debug"
)

// garbagePercent is the garbage collection target, in percent of the memory in use. An exchange
// leaves about 80 KB of garbage and keeps almost nothing. The memory in use stays small, and a
// collection costs the same with more garbage to collect.
const garbagePercent = 400

// collectLess sets the target for a process that serves, unless GOGC is set in its environment.
// GOMEMLIMIT bounds memory with either value.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}
