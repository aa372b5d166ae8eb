// Package gather lets groups grow before their price is paid: where one transaction, or one question to another
// server, costs the same for one as for many, those who are almost there shall share it.
//
// It owns no queue and no lock, and knows nothing of what is waited for.
package gather

import (
	"runtime"
	"time"
)

// Linger is how long a group waits for others where many come. It is short beside what an exchange waits for
// anyway, the transaction of the ledger.
const Linger = time.Millisecond

// crowd is how many make it likely that more will come.
const crowd = 4

// Group returns when a group has gathered. waiting says how many wait, and takes what lock it needs by itself; with
// most of them the group is complete. last is the size of the group before, in the same run: after a crowd it lingers, and
// where few come it does not, so that nobody waits for who is not about.
//
// Then it lets every goroutine that can run now go on, for as long as that brings more to wait. That takes no time where
// nothing else can run.
func Group(most, last int, waiting func() int) {
	if last >= crowd && waiting() < most {
		time.Sleep(Linger) // there is no event to wait for: who comes does not know of the group
	}
	for before := 0; ; runtime.Gosched() {
		n := waiting()
		if n <= before || n >= most {
			return
		}
		before = n
	}
}
