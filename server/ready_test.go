package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestProbeAsksOnceASecondHoweverManyWantToKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		p := &probe{check: func(context.Context) error { asked.Add(1); return nil }}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if err := p.ask(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if asked.Load() != 1 {
			t.Errorf("asked %d times at once", asked.Load())
		}
		time.Sleep(probeAge) // fake time
		_ = p.ask(t.Context())
		if asked.Load() != 2 {
			t.Errorf("asked %d times after a second", asked.Load())
		}
	})
}

func TestReadinessTakesASecondWhenEverythingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		r := &readiness{probes: map[string]*probe{"a": {check: hang}, "b": {check: hang}, "c": {check: hang}}}
		began := time.Now()
		if r.ready(t.Context()) {
			t.Error("ready")
		}
		if took := time.Since(began); took != probeTimeout {
			t.Errorf("took %v: the probes do not run at once", took)
		}
	})
}

// TestManyProbesShareTheirSeconds counts the requests of a thousand tenants to one OpenFGA, which
// then stops answering.
func TestManyProbesShareTheirSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tenants = 1000
		var asked, atOnce, most atomic.Int64
		var down atomic.Bool
		r := &readiness{probes: map[string]*probe{}}
		gate := make(chan struct{}, probesAtOnce)
		for i := range tenants {
			r.probes[fmt.Sprint(i)] = &probe{age: ageAmong(tenants), gate: gate, check: func(ctx context.Context) error {
				asked.Add(1)
				most.Store(max(most.Load(), atOnce.Add(1)))
				defer atOnce.Add(-1)
				if down.Load() {
					<-ctx.Done()
					return ctx.Err()
				}
				time.Sleep(time.Millisecond) // fake time
				return nil
			}}
		}
		if !r.ready(t.Context()) || asked.Load() != tenants || most.Load() > probesAtOnce {
			t.Fatalf("not ready at first: asked %d, %d at once", asked.Load(), most.Load())
		}
		asked.Store(0)
		minute := func() (ready bool) {
			for range 60 {
				time.Sleep(time.Second) // fake time
				ready = r.ready(t.Context())
			}
			return ready
		}
		if !minute() || asked.Load() > tenants*3/4 || asked.Load() < tenants/4 {
			t.Errorf("%d were asked within a minute", asked.Load())
		}
		down.Store(true)
		began, ready := time.Now(), true
		for ready && time.Since(began) < 10*time.Second {
			ready = r.ready(t.Context())
			time.Sleep(time.Second) // fake time
		}
		if took := time.Since(began); ready || took > 4*time.Second {
			t.Errorf("still %t %v after nobody answers any more", ready, took)
		}
		most.Store(0)
		if minute() || most.Load() > probesAtOnce {
			t.Errorf("%d at once while nobody answers", most.Load())
		}
		down.Store(false)
		if !minute() {
			t.Error("not ready again")
		}
	})
}

func TestAgeGrowsWithTheTenants(t *testing.T) {
	for tenants, want := range map[int]time.Duration{0: probeAge, 1: probeAge, probesPerSecond: probeAge, 800: 100 * time.Second} {
		if got := ageAmong(tenants); got != want {
			t.Errorf("%d tenants: %v, want %v", tenants, got, want)
		}
	}
}

func TestProbeOutlivesWhoAsked(t *testing.T) {
	p := &probe{check: func(ctx context.Context) error { return ctx.Err() }}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.ask(gone); err != nil {
		t.Errorf("who went away made everybody not ready: %v", err)
	}
}

func TestOneMissingDependencyIsEnough(t *testing.T) {
	yes := func(context.Context) error { return nil }
	for name, check := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New("down") },
		"panic": func(context.Context) error { panic("down") },
	} {
		r := &readiness{probes: map[string]*probe{"good": {check: yes}, "bad": {check: check}}}
		if r.ready(t.Context()) {
			t.Errorf("%s: ready", name)
		}
	}
	if r := (&readiness{probes: map[string]*probe{"good": {check: yes}}}); !r.ready(t.Context()) {
		t.Error("not ready with everything there")
	}
}

func TestWatchEndsWithNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var said []bool
		r := &readiness{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.watch(ctx, func(ready bool) { mu.Lock(); said = append(said, ready); mu.Unlock() })
		}()
		time.Sleep(3*probeAge + probeAge/2) // fake time
		cancel()
		<-done
		if len(said) != 5 || !said[0] || said[4] {
			t.Errorf("said %v", said)
		}
		if r.ready(t.Context()) {
			t.Error("ready while draining")
		}
	})
}
