package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"time"
)

// run is one measurement of one scenario. Times are milliseconds.
type run struct {
	Setup    string             `json:"setup"`
	Scenario string             `json:"scenario"`
	Round    int                `json:"round"`
	Requests int                `json:"requests"`
	Units    int                `json:"exchanges"`
	Seconds  float64            `json:"seconds"`
	Latency  latency            `json:"latency_ms"`
	CPU      map[string]float64 `json:"cpu_ms_per_exchange"` // by process, of the target
	Client   float64            `json:"generator_cpu_ms_per_exchange"`
	Floor    float64            `json:"floor_cpu_ms"` // per request, of the floor as measured just before and just after
	Outcomes map[string]int     `json:"outcomes"`
	Failures map[string]int     `json:"failures,omitempty"`
	Steps    map[string]float64 `json:"step_ms,omitempty"` // mean wall time by deputy_exchange_step_seconds
	Rate     float64            `json:"intended_per_second,omitempty"`
}

// latency holds percentiles in milliseconds.
type latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

func latencyOf(r *recorder) latency {
	return latency{
		P50: ms(r.percentile(50)), P90: ms(r.percentile(90)), P99: ms(r.percentile(99)),
		P999: ms(r.percentile(99.9)), Max: ms(r.percentile(100)),
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// total is the CPU time of an exchange in all processes of the target.
func (r run) total() float64 {
	sum := 0.0
	for _, spent := range r.CPU {
		sum += spent
	}
	return sum
}

// ratio is the cost of an exchange in floors; 0 where no floor was measured.
func (r run) ratio() float64 {
	if r.Floor == 0 {
		return 0
	}
	return r.total() / r.Floor
}

// perSecond is how many exchanges were made in a second.
func (r run) perSecond() float64 { return float64(r.Units) / r.Seconds }

// bench measures and reports progress.
type bench struct {
	atOnce   int
	requests int
	rounds   int
	floor    *floorProcess
	progress io.Writer
	runs     []run
}

// observe drives requests and reads the CPU time of the processes before and after.
func (b *bench) observe(processes map[string]int, perCall int, title string, drive func(r *recorder)) (run, error) {
	runtime.GC() // what was prepared for this is not part of it
	before, err := cpuTimes("/proc", processes)
	if err != nil {
		return run{}, err
	}
	own := ownCPU()
	r := newRecorder()
	stop := b.showProgress(title, r)
	drive(r)
	took := time.Since(r.began)
	stop()
	own = ownCPU() - own
	after, err := cpuTimes("/proc", processes)
	if err != nil {
		return run{}, err
	}
	result := run{
		Requests: r.done, Units: r.done * perCall, Seconds: took.Seconds(), Latency: latencyOf(r),
		CPU: make(map[string]float64), Outcomes: r.outcomes, Failures: r.failures,
	}
	if r.done == 0 {
		return run{}, fmt.Errorf("%s: no request was made", title)
	}
	for name := range processes {
		result.CPU[name] = ms(after[name]-before[name]) / float64(result.Units)
	}
	result.Client = ms(own) / float64(result.Units)
	return result, nil
}

// ownCPU is the CPU time of this process, the generator, without that of the servers that it
// started.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0 // it does not fail for oneself
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// showProgress writes a line each second, and one at the end.
func (b *bench) showProgress(title string, r *recorder) (stop func()) {
	done, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				fmt.Fprintf(b.progress, "%-46s %s\n", title, r.line())
			case <-done:
				fmt.Fprintf(b.progress, "%-46s %s\n", title, r.line())
				return
			}
		}
	}()
	return func() { close(done); <-told }
}

// floorRequests are enough for the clock of the operating system, which ticks every 10 ms.
const floorRequests = 4000

// measureFloor is the unit for what is measured next.
func (b *bench) measureFloor(ctx context.Context) (float64, error) {
	r, err := b.observe(map[string]int{"floor": b.floor.pid()}, 1, "floor", func(r *recorder) {
		closedLoop(ctx, r, max(b.requests, floorRequests), b.atOnce, b.floor.request)
	})
	if err != nil {
		return 0, err
	}
	if len(r.Failures) > 0 {
		return 0, fmt.Errorf("floor: %s", counts(r.Failures))
	}
	if r.CPU["floor"] == 0 {
		return 0, errors.New("floor: too few requests to be seen on the clock of the operating system")
	}
	return r.CPU["floor"], ctx.Err()
}

// pair measures the floor before and after the target, so that whatever else the machine does falls
// on both: processors change their pace within seconds. The requests go to the sessions in turn,
// which pair closes.
func (b *bench) pair(ctx context.Context, s *setup, c scenario, round int, on []*session, drive func(*recorder, operation)) (_ run, err error) {
	defer func() {
		for _, session := range on {
			err = errors.Join(err, session.close())
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", c.name, err)
		}
	}()
	first := max(2*connections, len(on)) // requests that make connections, before the clock runs
	each := make([]operation, len(on))
	for i, session := range on {
		err := patiently(ctx, func() (err error) {
			each[i], err = c.prepare(ctx, session, (b.requests+first)/len(on)+1)
			return err
		})
		if err == nil && len(on) > 1 { // helpers need no connection any more: there is a limit
			err = session.close()
		}
		if err != nil {
			return run{}, err
		}
	}
	if err := s.settle(ctx); err != nil {
		return run{}, err
	}
	do := func(ctx context.Context, i int) (string, error) { return each[i%len(on)](ctx, i/len(on)) }
	for i := range first {
		err := patiently(ctx, func() error { _, err := do(ctx, b.requests+i); return err })
		if err != nil {
			return run{}, err
		}
	}
	unit, err := b.measureFloor(ctx)
	if err != nil {
		return run{}, err
	}
	before := s.steps(ctx)
	r, err := b.observe(s.processes(), c.perCall, fmt.Sprintf("%s, %s, %d of %d", s.kind, c.name, round+1, b.rounds), func(r *recorder) { drive(r, do) })
	if err != nil {
		return run{}, err
	}
	r.Setup, r.Scenario, r.Round = s.kind, c.name, round+1
	r.Steps = meanSteps(before, s.steps(ctx))
	again, err := b.measureFloor(ctx)
	if err != nil {
		return run{}, err
	}
	r.Floor = (unit + again) / 2
	b.runs = append(b.runs, r)
	return r, ctx.Err()
}

const batchesAtOnce = 4

// closed is a pair by a closed loop, through one session unless some are given. Requests that make
// many exchanges are a tenth as many, and few at once.
func (b *bench) closed(ctx context.Context, s *setup, c scenario, round int, on ...*session) (run, error) {
	if len(on) == 0 {
		on = []*session{s.session(s.deputies[0], 0)}
	}
	return b.pair(ctx, s, c, round, on, func(r *recorder, do operation) {
		if c.perCall > 1 {
			closedLoop(ctx, r, max(b.requests/10, 1), min(b.atOnce, batchesAtOnce), do)
			return
		}
		closedLoop(ctx, r, b.requests, b.atOnce, do)
	})
}

// idle is the CPU time of all processes without requests.
func (b *bench) idle(ctx context.Context, s *setup, name string) (figure, error) {
	const watched = 5 * time.Second
	before, err := cpuTimes("/proc", s.processes())
	if err != nil || !sleepUntil(ctx, time.Now().Add(watched)) {
		return figure{}, errors.Join(err, ctx.Err())
	}
	after, err := cpuTimes("/proc", s.processes())
	f := figure{Setup: s.kind, Name: name, Unit: idleCPU}
	for process := range after {
		f.Value += ms(after[process]-before[process]) / watched.Seconds()
	}
	return f, err
}
