package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/delegation"
)

// stalling answers within a millisecond, except for one second in which it does not answer. The
// time is that of a synctest bubble.
func stalling() operation {
	began := time.Now()
	return func(context.Context, int) (string, error) {
		if at := time.Since(began); at >= 2*time.Second && at < 3*time.Second {
			time.Sleep(3*time.Second - at)
		}
		time.Sleep(time.Millisecond)
		return granted, nil
	}
}

func TestAStallIsChargedToAllWhoWouldHaveWaited(t *testing.T) {
	// 100 requests a second for 10 seconds, 4 at once: during the stall 100 requests should have
	// been sent.
	fixed := schedule{rate: 100, requests: 1000, atOnce: 4}
	slow := func(drive func(ctx context.Context, r *recorder, do operation)) (requests int) {
		synctest.Test(t, func(t *testing.T) {
			r := newRecorder()
			drive(t.Context(), r, stalling())
			if r.done != 1000 || r.outcomes[granted] != 1000 {
				t.Errorf("%d requests, outcomes %v", r.done, r.outcomes)
			}
			for _, bar := range r.latency.Distribution() {
				if bar.From >= int64(100*time.Millisecond) {
					requests += int(bar.Count)
				}
			}
		})
		return requests
	}
	open := slow(func(ctx context.Context, r *recorder, do operation) { openLoop(ctx, r, fixed, do) })
	if open < 85 {
		t.Errorf("%d requests of an open loop were late by 100 ms, of 100 that the stall met", open)
	}
	// The control: a closed loop hides all but the requests that were under way.
	closed := slow(func(ctx context.Context, r *recorder, do operation) { closedLoop(ctx, r, 1000, 4, do) })
	if closed > 4 {
		t.Errorf("%d requests of a closed loop were late: it should hide them", closed)
	}
}

func TestAnOpenLoopKeepsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		r := newRecorder()
		openLoop(t.Context(), r, schedule{rate: 50, requests: 101, atOnce: 8}, func(_ context.Context, i int) (string, error) {
			if at, want := time.Since(began), time.Duration(i)*20*time.Millisecond; at != want {
				t.Errorf("request %d was sent at %v, want %v", i, at, want)
			}
			return granted, nil
		})
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestLoopsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		openLoop(ctx, newRecorder(), schedule{rate: 1, requests: 1000, atOnce: 2}, func(context.Context, int) (string, error) { return granted, nil })
		if took := time.Since(began); took > time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestRecorderKeepsWhatIsBeyondItsRange(t *testing.T) {
	r := newRecorder()
	r.record(time.Hour, granted, nil)
	r.record(0, "", delegation.Refuse(delegation.TokenRevoked, "", "gone"))
	r.record(time.Millisecond, "", errors.New("connection lost"))
	if r.percentile(100) < highestLatency || r.latency.TotalCount() != 3 {
		t.Errorf("highest %v of %d", r.percentile(100), r.latency.TotalCount())
	}
	if got := counts(r.failures); got != "1 error, 1 token_revoked" {
		t.Errorf("failures: %s", got)
	}
}
