package guard_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/guard"
)

// Uses, rates, nonces and receipts are forgotten after their time, so that memory stays bounded by
// what is in force; a step of the wall clock makes nothing expire.
func TestMemoryForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory, step := guard.NewMemory(), time.Duration(0)
		g := guard.New(guard.Config{Memory: memory, Now: func() time.Time { return time.Now().Add(step) }})
		ten := guard.Limit{Rate: 10, Burst: 10}
		admit := func(id string, life time.Duration) error {
			return g.Admit(t.Context(), "acme", delegation.Principal("agent:"+id), 1, ten, guard.Use{Issuer: "i", Key: "k", ID: id, Until: time.Now().Add(step + life)})
		}
		put := func(id string, life time.Duration) {
			t.Helper()
			if err := admit(id, life); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Nonces(t.Context(), "acme"); err != nil {
				t.Fatal(err)
			}
			if err := g.Saw(t.Context(), "acme", []guard.Receipt{{ID: id, SeenAt: time.Now()}}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 {
			put(fmt.Sprint("short", i), time.Minute)
		}
		put("long", time.Hour)
		step = 2 * time.Hour
		if e := delegation.AsError(admit("long", time.Hour)); e == nil || e.Reason != delegation.AssertionReplayed {
			t.Errorf("a replay after a step of the clock: %v", e)
		}
		step = 0
		time.Sleep(30 * time.Second)
		put("between", time.Minute)
		time.Sleep(30*time.Second - time.Millisecond)
		if e := delegation.AsError(admit("short0", time.Minute)); e == nil || e.Reason != delegation.AssertionReplayed {
			t.Errorf("a replay a moment before the end: %v", e)
		}
		time.Sleep(30 * time.Minute)
		put("late", time.Hour)
		if held := guard.Held(memory, "acme"); held != [4]int{1, 2, 1, 1} {
			t.Errorf("%v rates, uses, nonces and receipts are held", held)
		}
		if e := delegation.AsError(admit("long", time.Hour)); e == nil || e.Reason != delegation.AssertionReplayed {
			t.Errorf("a replay within its time: %v", e)
		}
	})
}

// BenchmarkMemoryAdmit is one admission with two uses.
func BenchmarkMemoryAdmit(b *testing.B) {
	g := guard.New(guard.Config{Memory: guard.NewMemory()})
	until := time.Now().Add(time.Minute)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := g.Admit(b.Context(), "acme", "agent:planner", 1, guard.Limit{Rate: 1e6, Burst: 1e6},
			guard.Use{Issuer: "i", Key: "k", ID: fmt.Sprint("a", i), Until: until}, guard.Use{Issuer: "i", Key: "k", ID: fmt.Sprint("b", i), Until: until}); err != nil {
			b.Fatal(err)
		}
	}
}
