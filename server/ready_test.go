package server

import (
	"context"
	"errors"
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
