// Package gather lets a group of waiting requests grow before it is served. One transaction, or one
// question to another server, costs the same for one request as for many, so requests that arrive
// almost at the same time share it.
//
// It owns no queue and no lock, and does not depend on what is waited for.
package gather

import (
	"runtime"
	"time"
)

// Linger is how long a group waits for more requests under load. It is short compared with the
// ledger's transaction, for which an exchange waits in any case.
const Linger = time.Millisecond

// busy is the size of a group after which more requests are likely to arrive.
const busy = 4

// Group returns when a group is complete. waiting returns how many requests wait, and takes its own
// lock; most of them complete the group. last is the size of the previous group of the same run: if
// it was large, Group waits for Linger, and otherwise not at all, so that a single request never
// waits for others that do not arrive.
//
// Then it yields the processor to every goroutine that can run now, as long as that brings more
// requests. This takes no time if no other goroutine can run.
func Group(most, last int, waiting func() int) {
	if last >= busy && waiting() < most {
		time.Sleep(Linger) // there is no event to wait for: arriving requests do not notify the group
	}
	for before := 0; ; runtime.Gosched() {
		n := waiting()
		if n <= before || n >= most {
			return
		}
		before = n
	}
}
