package sim

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// runQueue sends jobs with independent arrivals to a station, event by event, and returns how long
// they were there.
func runQueue(servers, jobs int, rate float64, job func(*rand.Rand) time.Duration) *histogram {
	a := &agenda{}
	s := newStation(servers)
	random := rand.New(rand.NewPCG(7, 7))
	var took histogram
	var arrive func()
	left := jobs
	arrive = func() {
		came := a.now
		a.call(s.take(a.now, job(random)), func() { took.add(a.now-came, 1) })
		if left--; left > 0 {
			a.call(a.now+time.Duration(random.ExpFloat64()/rate*float64(time.Second)), arrive)
		}
	}
	a.call(0, arrive)
	a.until(time.Duration(float64(jobs) / rate * 1.2 * float64(time.Second)))
	return &took
}

func near(got, want, tolerance float64) bool { return math.Abs(got-want) <= tolerance*want }

// TestStationIsMM1 compares the mean and the tail with 1/(μ-λ) and its exponential distribution.
func TestStationIsMM1(t *testing.T) {
	const rate, jobs = 700.0, 150_000
	job := func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(time.Millisecond)) }
	took := runQueue(1, jobs, rate, job)
	mean, p99 := 1/(1000-rate), math.Log(100)/(1000-rate)
	t.Logf("mean %v, want %.2f ms; p99 %v, want %.1f ms", took.mean(), 1000*mean, took.quantile(0.99), 1000*p99)
	if took.count != jobs || !near(took.mean().Seconds(), mean, 0.05) || !near(took.quantile(0.99).Seconds(), p99, 0.1) {
		t.Error("the station is no M/M/1 queue")
	}
}

// waitMDc is the mean wait in an M/D/c queue, in units of the service time (Pollaczek 1930,
// Crommelin 1932).
func waitMDc(c int, load float64) float64 {
	// tail is the probability that a Poisson variable is at least k.
	tail := func(mean float64, k int) float64 {
		p, below := math.Exp(-mean), 0.0
		for i := range k {
			below += p
			p *= mean / float64(i+1)
		}
		return 1 - below
	}
	sum := 0.0
	for i := 1; i < 400; i++ {
		mean := float64(i) * load * float64(c)
		if mean > 600 {
			break
		}
		sum += tail(mean, i*c) - tail(mean, i*c+1)/load
	}
	return sum
}

func TestStationIsMDc(t *testing.T) {
	const load = 0.8
	if want := load / (2 * (1 - load)); !near(waitMDc(1, load), want, 0.001) {
		t.Fatalf("for one server Pollaczek and Khinchine give %f, this formula %f", want, waitMDc(1, load))
	}
	for _, servers := range []int{1, 4, 8} {
		took := runQueue(servers, 100_000, load*float64(servers)*1000, func(*rand.Rand) time.Duration { return time.Millisecond })
		wait, want := float64(took.mean())/float64(time.Millisecond)-1, waitMDc(servers, load)
		t.Logf("%d servers: wait %.4f ms, want %.4f", servers, wait, want)
		if !near(wait, want, 0.05) {
			t.Errorf("the station is no M/D/%d queue", servers)
		}
	}
}

func TestAgendaKeepsOrder(t *testing.T) {
	a := &agenda{}
	var order []int
	for n, at := range []time.Duration{3, 1, 2, 1, 3} {
		a.call(at, func() { order = append(order, n) })
	}
	a.until(2)
	if len(order) != 3 || order[0] != 1 || order[1] != 3 || order[2] != 2 || a.now != 2 {
		t.Errorf("%v at %v", order, a.now)
	}
	a.call(1, func() { // past: now
		if a.now != 2 {
			t.Errorf("time ran backwards, to %v", a.now)
		}
	})
	a.until(9)
	if len(order) != 5 || order[3] != 0 || order[4] != 4 {
		t.Error(order)
	}
}

// TestDiskSharesFlushes is group commit on the disk: a write during a flush is in the next one.
func TestDiskSharesFlushes(t *testing.T) {
	d := disk{takes: 10}
	for _, c := range []struct{ now, done time.Duration }{{0, 10}, {1, 20}, {9, 20}, {12, 30}, {30, 40}, {31, 50}, {100, 110}} {
		if done := d.flush(c.now); done != c.done {
			t.Errorf("a flush asked for at %d is done at %d, want %d", c.now, done, c.done)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := 1; i <= 100_000; i++ {
		h.add(time.Duration(i)*time.Microsecond, 1)
	}
	for _, share := range []float64{0.01, 0.5, 0.99, 0.999} {
		if got := h.quantile(share); !near(float64(got), share*1e8, 0.04) {
			t.Errorf("quantile %g: %v", share, got)
		}
	}
	if h.max != 100*time.Millisecond || h.quantile(1) != h.max || !near(float64(h.mean()), 5e7, 0.001) {
		t.Error(h.max, h.quantile(1), h.mean())
	}
}

func TestSlot(t *testing.T) {
	// The check value of CRC-16/XMODEM, and examples of the Redis Cluster specification.
	for tag, want := range map[string]int{"123456789": 0x31c3, "foo": 12182, "bar": 5061} {
		if got := slot(tag); got != want {
			t.Errorf("slot(%q) is %d, want %d", tag, got, want)
		}
	}
}
