package gather_test

import (
	"runtime"
	"testing"

	"deputy.example/deputy/server/internal/gather"
)

func TestGroup(t *testing.T) {
	for name, test := range map[string]struct {
		counts []int // what is found, one after the other
		asked  int   // how often
	}{
		"nobody":            {[]int{0}, 1},
		"one alone":         {[]int{1, 1}, 2},
		"more and more":     {[]int{1, 3, 7, 7}, 4},
		"some have left":    {[]int{5, 4}, 2},
		"as many as can be": {[]int{2, 10}, 2},
		"too many at once":  {[]int{11}, 1},
	} {
		asked := 0
		gather.Group(10, func() int { asked++; return test.counts[asked-1] })
		if asked != test.asked {
			t.Errorf("%s: asked %d times, want %d", name, asked, test.asked)
		}
	}
}

// Who can run comes before the group is closed.
func TestGroupLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	waiting, done := 1, make(chan struct{})
	go func() { waiting++; close(done) }() // one processor: it runs when this goroutine gives way
	gather.Group(10, func() int { return waiting })
	if waiting != 2 {
		t.Error("a goroutine that could run was left behind")
	}
	<-done
}
