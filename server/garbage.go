package server

import (
	"os"
	"runtime/debug"
)

// garbagePercent is how much garbage there may be before it is collected, in percent of what is in use. An
// exchange leaves some 80 KB behind and keeps next to nothing, so what is in use stays small and a collection
// costs as much as it would with more to collect.
const garbagePercent = 400

// collectLess is for a process that serves, unless whoever started it says by GOGC what it wants. GOMEMLIMIT
// bounds memory with either.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}
