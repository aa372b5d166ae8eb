package gather_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/server/internal/gather"
)

func TestGroup(t *testing.T) {
	const most = 10
	for name, test := range map[string]struct {
		last    int
		counts  []int // what is found, one after the other
		lingers bool
	}{
		"none":                                  {0, []int{0}, false},
		"one alone":                             {1, []int{1, 1}, false},
		"more and more":                         {3, []int{1, 3, 7, 7}, false},
		"some have left":                        {0, []int{5, 4}, false},
		"as many as can be":                     {0, []int{2, 10}, false},
		"too many at once":                      {0, []int{11}, false},
		"after a large group":                   {4, []int{1, 6, 6}, true},
		"after a large group, all are here":     {4, []int{10, 10}, false},
		"after a large group, none comes":       {9, []int{0, 0}, true},
		"after a large group, they have left":   {9, []int{3, 0}, true},
		"after a large group, more than enough": {9, []int{12, 12}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, asked := time.Now(), 0
			gather.Group(most, test.last, func() int { asked++; return test.counts[asked-1] })
			if asked != len(test.counts) {
				t.Errorf("%s: asked %d times, want %d", name, asked, len(test.counts))
			}
			if lingered := time.Since(began) == gather.Linger; lingered != test.lingers {
				t.Errorf("%s: took %v", name, time.Since(began))
			}
		})
	}
}

// Goroutines that can run do so before the group is closed. The scheduler may return to the one that yielded: it takes
// every 61st from another queue. So a few rounds of many may leave the other behind, and without yielding all would.
func TestGroupLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const rounds = 50
	left := 0
	for range rounds {
		var waiting atomic.Int64
		waiting.Store(1)
		done := make(chan struct{})
		go func() { waiting.Add(1); close(done) }() // one processor: it runs when this goroutine yields
		gather.Group(10, 0, func() int { return int(waiting.Load()) })
		if waiting.Load() != 2 {
			left++
		}
		<-done
	}
	if left > rounds/5 {
		t.Errorf("a goroutine that could run was left behind in %d rounds of %d", left, rounds)
	}
}
