// Package clock decides from evidence what time it is. No clock is an authority: the wall clock of
// this machine can be stepped, and so can the clock of the database or of Redis.
//
// The evidence is the wall clock, the clock that runs since the machine was started and is never
// stepped (Elapsed), and the clocks of other machines that answered. An estimate that evidence has
// confirmed advances with Elapsed and has a vote of its own. So one clock that steps is outvoted,
// and two that step together are accepted only once they have held still for Hold. An instance
// whose wall clock is further than Bound from the estimate, or whose evidence is divided, is not
// Trusted: it issues and forgets nothing until that ends.
//
// The package must not depend on what the time is used for.
package clock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// DefaultBound is the default of Config.Bound.
	DefaultBound = 2 * time.Second
	// Hold is how long clocks that contradict the estimate must hold still before they replace it.
	Hold = time.Minute
	// Settle is how long nothing is forgotten after the estimate was replaced or first made.
	Settle = 15 * time.Minute

	fresh = 10 * time.Second // maximum age of the answer of another machine's clock
	every = time.Second      // interval at which Run compares, and limit for one answer
	// slew is how fast the estimate follows the clocks that agree with it, in parts per million.
	slew  = 100
	still = 50     // a clock that moves by less than this part of Bound holds still
	wall  = "wall" // name of this machine's clock among the sources
)

// Config configures a Clock. The zero value is the configuration of production.
type Config struct {
	Now func() time.Time // the wall clock; nil: time.Now
	// Elapsed grows with real time, asleep or awake, and is never stepped; nil: CLOCK_BOOTTIME.
	Elapsed func() time.Duration
	// Remote maps the answer of a source to the time that is used for it. nil: the answer itself.
	Remote func(source string, answer time.Time) time.Time
	// Bound is how far clocks may be apart, and how far ledger time can jump. It must not be longer
	// than any tenant's skew. Default DefaultBound.
	Bound time.Duration

	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics
}

// Clock judges the time for one instance. It is safe for concurrent use.
type Clock struct {
	config  Config
	sole    bool
	offsets *prometheus.GaugeVec
	verdict atomic.Pointer[verdict]

	mu        sync.Mutex // guards what follows
	answers   map[string]answer
	candidate span          // contradicts the estimate, while it holds still
	since     time.Duration // when candidate began to hold still, by Elapsed
	contested bool          // candidate is set
}

// span is the offset of a clock against Elapsed: the time, in nanoseconds since 1970, that the
// clock would have shown when Elapsed was zero. The answer was made between two readings of
// Elapsed, which give the two ends.
type span struct{ lo, hi int64 }

func (s span) middle() int64 { return s.lo + (s.hi-s.lo)/2 }

// apart is the distance of the span from a point; 0 within the span.
func (s span) apart(point int64) time.Duration {
	return time.Duration(max(s.lo-point, point-s.hi, 0))
}

type answer struct {
	span
	at time.Duration
}

// verdict holds until there is new evidence.
type verdict struct {
	known   bool
	alone   bool          // only the wall clock has ever confirmed the estimate
	offset  int64         // of the estimate, as in span
	weighed time.Duration // when the verdict was made, by Elapsed
	proven  time.Duration // nothing is forgotten before, because the estimate is the first
	settled time.Duration // nothing is forgotten before, because the estimate replaced another
	problem error         // nil: trusted, while the wall clock stays within Bound
}

func (v *verdict) estimate(elapsed time.Duration) time.Time {
	return time.Unix(0, v.offset+int64(elapsed)).UTC()
}

// New makes a Clock that has not compared yet.
func New(c Config) *Clock {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Elapsed == nil {
		c.Elapsed = elapsed
	}
	if c.Remote == nil {
		c.Remote = func(_ string, t time.Time) time.Time { return t }
	}
	if c.Bound <= 0 {
		c.Bound = DefaultBound
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Clock{config: c, answers: make(map[string]answer)}
	k.offsets = promauto.With(c.Registerer).NewGaugeVec(prometheus.GaugeOpts{
		Name: "deputy_clock_offset_seconds",
		Help: "How far a clock (wall, postgresql, redis) is ahead of what this instance believes the time to be.",
	}, []string{"source"})
	k.verdict.Store(&verdict{problem: errUncompared})
	return k
}

var errUncompared = errors.New("the clocks have not been compared yet")

// Only returns a Clock whose only evidence is now, which it always trusts. It is for tools that
// record what happened at another time, and never for an instance that serves.
func Only(now func() time.Time) *Clock {
	k := New(Config{Now: now, Elapsed: func() time.Duration { return 0 }})
	k.sole = true
	return k
}

// Bound returns Config.Bound, or its default.
func (c *Clock) Bound() time.Duration { return c.config.Bound }

// Elapsed returns Config.Elapsed, for the argument before of Judge.
func (c *Clock) Elapsed() time.Duration { return c.config.Elapsed() }

// Now returns the time of the wall clock while that is within Bound of the estimate, and the
// estimate otherwise. It notices a step at once.
func (c *Clock) Now() time.Time {
	shown := c.config.Now()
	v := c.verdict.Load()
	if c.sole || !v.known {
		return shown
	}
	if best := v.estimate(c.config.Elapsed()); distance(shown, best) > c.config.Bound {
		return best
	}
	return shown
}

// distance compares the two wall clock times. Sub would use the monotonic readings and compare how
// long ago they were read.
func distance(a, b time.Time) time.Duration {
	return time.Duration(max(a.UnixNano()-b.UnixNano(), b.UnixNano()-a.UnixNano()))
}

// Trusted returns nil while this instance may issue: the evidence agrees, and so does the wall
// clock. Otherwise the error gives the reason.
func (c *Clock) Trusted() error {
	v := c.verdict.Load()
	if c.sole || v.problem == nil && distance(c.config.Now(), v.estimate(c.config.Elapsed())) <= c.config.Bound {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.weigh().problem
}

// Settled reports whether expired state may be forgotten: the clock is Steady, and the first
// comparison is at least Settle ago. An instance that starts during a step has no evidence against
// the step.
func (c *Clock) Settled() bool {
	return c.Steady() && (c.sole || c.config.Elapsed() >= c.verdict.Load().proven)
}

// Steady reports whether work that is due by the time may be done: the clock is Trusted, and the
// estimate was not replaced within Settle.
func (c *Clock) Steady() bool {
	if c.Trusted() != nil {
		return false
	}
	return c.sole || c.config.Elapsed() >= c.verdict.Load().settled
}

// Judge returns the time to record after a source has answered. before is Elapsed when the source
// was asked. A zero answer is no answer: the source has no clock of its own. Judge returns the
// answer while that is within Bound of the estimate, and the estimate otherwise. So the recorded
// time cannot jump, whichever clock does. The error is that of Trusted. The time is the best
// available even with an error: where the evidence is divided from the start, it is the earliest
// clock that is not behind the last recorded time.
func (c *Clock) Judge(source string, shown time.Time, before time.Duration, last time.Time) (time.Time, error) {
	if c.sole {
		return c.config.Now(), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var stands span
	if !shown.IsZero() {
		shown = c.config.Remote(source, shown)
		stands = c.observe(source, shown, before)
	}
	v := c.weigh()
	switch {
	case !v.known:
		return c.earliest(last, v.weighed), v.problem
	case shown.IsZero() || stands.apart(v.offset) > c.config.Bound:
		return v.estimate(v.weighed), v.problem
	}
	return shown, v.problem
}

// observe records an answer and returns the offset of its clock. A more exact answer is kept while
// it is young, unless the clock was stepped since.
func (c *Clock) observe(source string, shown time.Time, before time.Duration) span {
	now := c.config.Elapsed()
	a := answer{span{shown.UnixNano() - int64(now), shown.UnixNano() - int64(before)}, now}
	old, there := c.answers[source]
	if !there || a.hi-a.lo <= old.hi-old.lo || now-old.at >= every || max(a.lo-old.hi, old.lo-a.hi) > 0 {
		c.answers[source] = a
	}
	return a.span
}

// look reads the wall clock.
func (c *Clock) look() span {
	before := c.config.Elapsed()
	shown := c.config.Now().UnixNano()
	return span{shown - int64(c.config.Elapsed()), shown - int64(before)}
}

// votes returns the current evidence, the wall clock first. c.mu is held.
func (c *Clock) votes() (votes []span, now time.Duration) {
	votes = append(votes, c.look())
	now = c.config.Elapsed()
	for _, a := range c.answers {
		if now-a.at <= fresh {
			votes = append(votes, a.span)
		}
	}
	return votes, now
}

// earliest returns the earliest clock that is not more than Bound behind the last recorded time, or
// the last recorded time. c.mu is held.
func (c *Clock) earliest(last time.Time, now time.Duration) time.Time {
	votes, _ := c.votes()
	best := last
	for _, s := range votes {
		shown := time.Unix(0, s.middle()+int64(now)).UTC()
		if !shown.Before(last.Add(-c.config.Bound)) && (best.Equal(last) || shown.Before(best)) {
			best = shown
		}
	}
	return best
}

// weigh makes a new verdict. c.mu is held.
func (c *Clock) weigh() *verdict {
	votes, now := c.votes()
	mine := votes[0]
	old := *c.verdict.Load()
	if old.alone && len(votes) > 1 { // the wall clock must not vote twice
		old.known, old.alone = false, false
	}
	next := old
	next.weighed = now
	if group := c.agreeing(votes, old.offset); old.known && 2*(len(group)+1) > len(votes)+1 {
		c.contested = false
		next.offset = follow(old.offset, median(group), now-old.weighed)
		next.problem = c.wrong(mine, next.offset)
	} else {
		c.contest(votes, now, &next)
		if next.problem == nil {
			next.problem = c.wrong(mine, next.offset)
		}
	}
	c.verdict.Store(&next)
	c.tell(old.problem, next.problem)
	return &next
}

// contest decides where the estimate has no majority, or where there is no estimate yet.
func (c *Clock) contest(votes []span, now time.Duration, v *verdict) {
	var group []span
	for _, s := range votes {
		if with := c.agreeing(votes, s.middle()); len(with) > len(group) {
			group = with
		}
	}
	v.problem = errDivided
	if 2*len(group) <= len(votes) {
		c.contested = false
		return
	}
	middle := median(group)
	if !v.known {
		v.known, v.alone, v.offset, v.proven, v.problem = true, len(votes) == 1, middle, now+Settle, nil
		return
	}
	if !c.contested || c.candidate.apart(middle) > max(c.config.Bound/still, width(group)/2) {
		c.contested, c.candidate, c.since = true, span{middle, middle}, now
	}
	if now-c.since >= Hold {
		c.contested = false
		v.offset, v.settled, v.problem = middle, now+Settle, nil
	}
}

var errDivided = errors.New("the clocks of this machine, of the database and of Redis do not agree with each other and with what they showed before")

func (c *Clock) agreeing(votes []span, point int64) (group []span) {
	for _, s := range votes {
		if s.apart(point) <= c.config.Bound {
			group = append(group, s)
		}
	}
	return group
}

func median(group []span) int64 {
	middles := make([]int64, len(group))
	for i, s := range group {
		middles[i] = s.middle()
	}
	slices.Sort(middles)
	return middles[len(middles)/2]
}

// width is the width of the widest span: a clock that holds still seems to move by half of it.
func width(group []span) (most time.Duration) {
	for _, s := range group {
		most = max(most, time.Duration(s.hi-s.lo))
	}
	return most
}

// follow moves the estimate towards its evidence, at most as fast as clocks that are not stepped
// drift apart.
func follow(from, to int64, passed time.Duration) int64 {
	most := int64(max(passed, 0)) / 1000 * slew / 1000
	return from + min(max(to-from, -most), most)
}

// wrong returns an error if the wall clock is further than Bound from the offset.
func (c *Clock) wrong(mine span, offset int64) error {
	if mine.apart(offset) <= c.config.Bound {
		return nil
	}
	ahead := time.Duration(mine.middle() - offset).Round(time.Millisecond)
	return fmt.Errorf("the wall clock of this machine is %v ahead, more than clock.bound (%v): set it right", ahead, c.config.Bound)
}

// tell logs when trust begins or ends.
func (c *Clock) tell(before, after error) {
	switch {
	case after != nil && before != nil && before != errUncompared, after == nil && (before == nil || before == errUncompared):
	case after != nil:
		c.config.Logger.Error("clock_distrusted: this instance issues and forgets nothing", "cause", after)
	default:
		c.config.Logger.Info("clock_trusted: this instance issues again")
	}
}

// Source is a clock of another machine.
type Source struct {
	Name string // one word, for metrics
	Ask  func(context.Context) (time.Time, error)
}

// Compare asks every source once, each for at most a second. A source that does not answer has no
// vote.
func (c *Clock) Compare(ctx context.Context, sources ...Source) {
	for _, s := range sources {
		before := c.config.Elapsed()
		bounded, cancel := context.WithTimeout(ctx, every)
		shown, err := s.Ask(bounded)
		cancel()
		if err != nil || c.sole {
			continue
		}
		c.mu.Lock()
		c.observe(s.Name, c.config.Remote(s.Name, shown), before)
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.weigh()
	c.offsets.WithLabelValues(wall).Set(time.Duration(c.look().middle() - v.offset).Seconds())
	for name, a := range c.answers {
		if c.config.Elapsed()-a.at > fresh {
			c.offsets.DeleteLabelValues(name)
			continue
		}
		c.offsets.WithLabelValues(name).Set(time.Duration(a.middle() - v.offset).Seconds())
	}
}

// Run compares every second until ctx ends, and then returns nil.
func (c *Clock) Run(ctx context.Context, sources ...Source) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c.Compare(ctx, sources...)
	}
}
