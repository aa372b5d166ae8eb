package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"deputy.example/deputy/client/delegation"
)

// An operation makes request number i. A refusal that the scenario expects is an outcome and not an
// error.
type operation func(ctx context.Context, i int) (outcome string, err error)

// granted is the outcome of a request that received everything.
const granted = "granted"

// latencies are kept between a microsecond and a minute, to three digits.
const (
	lowestLatency  = time.Microsecond
	highestLatency = time.Minute
	latencyDigits  = 3
)

// recorder takes the outcomes of requests, from many goroutines at once.
type recorder struct {
	mu       sync.Mutex
	latency  *hdrhistogram.Histogram // nanoseconds
	outcomes map[string]int
	failures map[string]int
	done     int
	began    time.Time
}

func newRecorder() *recorder {
	return &recorder{
		latency:  hdrhistogram.New(int64(lowestLatency), int64(highestLatency), latencyDigits),
		outcomes: make(map[string]int), failures: make(map[string]int), began: time.Now(),
	}
}

func (r *recorder) record(took time.Duration, outcome string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	// What took longer than the histogram reaches counts as its highest value, never as nothing.
	_ = r.latency.RecordValue(int64(min(max(took, lowestLatency), highestLatency)))
	if err == nil {
		r.outcomes[outcome]++
		return
	}
	kind := "error"
	if refusal, is := errors.AsType[*delegation.Error](err); is {
		kind = string(refusal.Reason)
	}
	r.failures[kind]++
}

// percentile is a latency that q percent of the requests did not exceed.
func (r *recorder) percentile(q float64) time.Duration {
	return time.Duration(r.latency.ValueAtQuantile(q))
}

// line returns the progress of the requests.
func (r *recorder) line() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	passed := time.Since(r.began)
	text := fmt.Sprintf("%4.0f s %7d requests %7.0f/s  p50 %8s  p99 %8s", passed.Seconds(), r.done,
		float64(r.done)/passed.Seconds(), short(r.percentile(50)), short(r.percentile(99)))
	if len(r.failures) > 0 {
		text += "  failed: " + counts(r.failures)
	}
	return text
}

func counts(of map[string]int) string {
	list := make([]string, 0, len(of))
	for _, name := range slices.Sorted(maps.Keys(of)) {
		list = append(list, fmt.Sprintf("%d %s", of[name], name))
	}
	return strings.Join(list, ", ")
}

func short(d time.Duration) time.Duration {
	if d > 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// closedLoop makes so many requests, so many at once: each worker sends its next request when the
// one before was answered. It measures what a request costs, and hides how long others would have
// waited.
func closedLoop(ctx context.Context, r *recorder, requests, atOnce int, do operation) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= requests {
					return
				}
				sent := time.Now()
				outcome, err := do(ctx, i)
				r.record(time.Since(sent), outcome, err)
			}
		})
	}
	workers.Wait()
}

// schedule is a fixed rate of requests that does not ask whether the target keeps up.
type schedule struct {
	rate     float64 // requests per second
	requests int
	// atOnce bounds the requests under way. One that has to wait for its turn waits at the target's
	// expense: its latency counts from when it should have been sent.
	atOnce int
}

// openLoop sends by the schedule. The latency of each request counts from the time that the
// schedule intended for it, so a stall of the target counts for all requests that were due
// meanwhile. To count from the sending is the error that is called coordinated omission.
func openLoop(ctx context.Context, r *recorder, s schedule, do operation) {
	var next atomic.Int64
	var workers sync.WaitGroup
	began := time.Now()
	for range s.atOnce {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= s.requests {
					return
				}
				intended := began.Add(time.Duration(float64(i) / s.rate * float64(time.Second)))
				if !sleepUntil(ctx, intended) {
					return
				}
				outcome, err := do(ctx, i)
				r.record(time.Since(intended), outcome, err)
			}
		})
	}
	workers.Wait()
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
