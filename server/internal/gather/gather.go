// Package gather lets groups grow before their price is paid: where one transaction, or one question to another
// server, costs the same for one as for many, those who are almost there shall share it.
//
// It owns no queue and no lock, and knows nothing of what is waited for.
package gather

import "runtime"

// Group lets every goroutine that can run now go on, for as long as that brings more to wait, or until most of
// them do. It takes no time where nothing else can run, and sleeps never: nobody waits for who is not here.
// waiting says how many wait, and takes what lock it needs by itself.
func Group(most int, waiting func() int) {
	for before := 0; ; runtime.Gosched() {
		n := waiting()
		if n <= before || n >= most {
			return
		}
		before = n
	}
}
