package clock

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var origin = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// machine is a machine whose clocks a test steps. truth is the true time, by which real time
// passes.
type machine struct {
	truth   time.Duration
	wall    time.Duration // how far the wall clock is ahead
	remotes map[string]time.Duration
	*Clock
}

func newMachine(remotes ...string) *machine {
	m := &machine{remotes: map[string]time.Duration{}}
	for _, name := range remotes {
		m.remotes[name] = 0
	}
	m.restart()
	return m
}

func (m *machine) config() Config {
	return Config{
		Now:     func() time.Time { return origin.Add(m.truth + m.wall) },
		Elapsed: func() time.Duration { return m.truth },
	}
}

func (m *machine) restart() { m.Clock = New(m.config()) }

// pass lets real time pass, with a comparison each second.
func (m *machine) pass(d time.Duration) {
	for end := m.truth + d; m.truth < end; {
		m.truth += min(time.Second, end-m.truth)
		m.compare()
	}
}

func (m *machine) compare() {
	var sources []Source
	for name, ahead := range m.remotes {
		sources = append(sources, Source{name, func(context.Context) (time.Time, error) {
			if ahead == unreachable {
				return time.Time{}, errors.New("unreachable")
			}
			return origin.Add(m.truth + ahead), nil
		}})
	}
	m.Compare(context.Background(), sources...)
}

const unreachable = time.Duration(1<<63 - 1)

func (m *machine) now() time.Time { return origin.Add(m.truth) }

func (m *machine) trusts(t *testing.T, want bool) {
	t.Helper()
	if err := m.Trusted(); (err == nil) != want {
		t.Fatalf("after %v, the wall clock %v ahead and others %v: %v, want trusted %t", m.truth, m.wall, m.remotes, err, want)
	}
}

// right fails the test unless Now is within the bound of the true time.
func (m *machine) right(t *testing.T) {
	t.Helper()
	if off := distance(m.Now(), m.now()); off > DefaultBound {
		t.Fatalf("after %v, the wall clock %v ahead and others %v: Now is %v off", m.truth, m.wall, m.remotes, off)
	}
}

func TestAStepOfTheWallClockIsNoticedAtOnce(t *testing.T) {
	for name, remotes := range map[string][]string{"alone": nil, "PostgreSQL": {"postgresql"}, "both": {"postgresql", "redis"}} {
		t.Run(name, func(t *testing.T) {
			for _, step := range []time.Duration{-48 * time.Hour, -40 * time.Minute, -3 * time.Second, 3 * time.Second, 40 * time.Minute, 48 * time.Hour} {
				m := newMachine(remotes...)
				m.trustsNothingYet(t)
				m.compare()
				m.trusts(t, true)
				m.pass(Settle)
				m.wall = step
				m.trusts(t, false)
				m.right(t)
				m.pass(30 * time.Second)
				m.trusts(t, false)
				m.right(t)
				m.wall = 0
				m.trusts(t, true)
				m.right(t)
				if !m.Settled() {
					t.Error("nothing is forgotten after a step that was short")
				}
			}
		})
	}
}

func (m *machine) trustsNothingYet(t *testing.T) {
	t.Helper()
	if v := m.verdict.Load(); v.problem == nil || v.known {
		t.Fatal("a clock is trusted before anything was compared")
	}
}

func TestSmallStepsAreNoSteps(t *testing.T) {
	m := newMachine("postgresql")
	m.compare()
	m.wall = DefaultBound - time.Millisecond
	m.trusts(t, true)
	if got := m.Now(); !got.Equal(origin.Add(m.wall)) {
		t.Errorf("Now = %v, want what the wall clock shows", got)
	}
}

func TestAWrongRemoteClockIsOutvoted(t *testing.T) {
	for _, remotes := range [][]string{{"postgresql"}, {"postgresql", "redis"}} {
		m := newMachine(remotes...)
		m.compare()
		m.remotes["postgresql"] = 48 * time.Hour
		m.pass(2 * Hold)
		m.trusts(t, true)
		m.right(t)
		at, err := m.Judge("postgresql", origin.Add(m.truth+48*time.Hour), m.truth, time.Time{})
		if err != nil || distance(at, m.now()) > DefaultBound {
			t.Errorf("judged %v, %v", at, err)
		}
	}
}

// TestHold steps all clocks of one machine together: they are accepted once they have held still,
// and for longer nothing is forgotten.
func TestHold(t *testing.T) {
	for name, remotes := range map[string][]string{"alone": nil, "with others": {"postgresql", "redis"}} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(remotes...)
			m.pass(Settle + time.Second)
			if !m.Settled() {
				t.Fatal("the start is not over")
			}
			m.wall = time.Hour
			for other := range m.remotes {
				m.remotes[other] = time.Hour
			}
			m.pass(Hold - time.Second)
			m.trusts(t, false)
			m.pass(2 * time.Second)
			m.trusts(t, true)
			if m.Settled() {
				t.Error("what ended may be forgotten at once")
			}
			m.pass(Settle)
			if !m.Settled() {
				t.Error("nothing is ever forgotten again")
			}
		})
	}
}

// TestAStartIsNoEvidence starts an instance: it may issue at once, and forgets nothing until its
// clock has held still.
func TestAStartIsNoEvidence(t *testing.T) {
	for _, remotes := range [][]string{nil, {"postgresql", "redis"}} {
		m := newMachine(remotes...)
		m.compare()
		m.trusts(t, true)
		m.pass(Settle - time.Second)
		if m.Settled() {
			t.Error("what ended may be forgotten soon after the start")
		}
		m.pass(2 * time.Second)
		if !m.Settled() {
			t.Error("nothing is ever forgotten")
		}
	}
}

// TestHoldIsMeasuredAcrossJitter delays the readings of a stepped clock by up to a tenth of the
// bound.
func TestHoldIsMeasuredAcrossJitter(t *testing.T) {
	var truth, late time.Duration
	ahead := time.Duration(0)
	reads := 0
	c := New(Config{
		Now: func() time.Time { return origin.Add(truth + ahead) },
		// The second of two readings, around one of the wall clock, is late.
		Elapsed: func() time.Duration {
			if reads++; reads%2 == 0 {
				truth += late
			}
			return truth
		},
	})
	c.Compare(t.Context())
	ahead = time.Hour
	for i := range int(Hold/time.Second) + 5 {
		truth += time.Second
		late = time.Duration(i%3) * DefaultBound / 10
		c.Compare(t.Context())
	}
	if err := c.Trusted(); err != nil {
		t.Error(err)
	}
}

func TestDriftIsNoticed(t *testing.T) {
	for _, remotes := range [][]string{nil, {"postgresql"}} {
		m := newMachine(remotes...)
		m.compare()
		for range 3600 {
			m.wall += time.Millisecond
			m.pass(time.Second)
		}
		m.trusts(t, false)
		m.right(t)
	}
}

func TestTheWallClockHasNoTwoVotes(t *testing.T) {
	m := newMachine("postgresql")
	m.wall, m.remotes["postgresql"] = time.Hour, unreachable
	m.compare()
	m.trusts(t, true) // there is no other evidence
	m.remotes["postgresql"] = 0
	m.pass(3 * Hold)
	m.trusts(t, false)
	m.wall = 0
	m.pass(time.Second)
	m.trusts(t, true)
	m.right(t)
}

func TestDividedFromTheStart(t *testing.T) {
	m := newMachine("postgresql")
	m.remotes["postgresql"] = 48 * time.Hour
	m.compare()
	m.trusts(t, false)
	at, err := m.Judge("postgresql", origin.Add(48*time.Hour), 0, origin.Add(-time.Second))
	if err == nil || !at.Equal(origin) {
		t.Errorf("judged %v, %v; want the earliest clock that is not behind what was recorded", at, err)
	}
	m.wall = -time.Hour
	if at, _ := m.Judge("postgresql", origin.Add(48*time.Hour), 0, origin); at.Before(origin) {
		t.Errorf("judged %v, before what was recorded", at)
	}
}

// TestASlowAnswerIsNoEvidenceOfAStep delays an answer: its time may be from any moment in between.
func TestASlowAnswerIsNoEvidenceOfAStep(t *testing.T) {
	m := newMachine("postgresql")
	m.compare()
	asked := m.truth
	m.truth += 10 * time.Second
	if _, err := m.Judge("postgresql", origin.Add(asked), asked, time.Time{}); err != nil {
		t.Error(err)
	}
}

func TestMetricsAndLog(t *testing.T) {
	m := newMachine("redis")
	registry := prometheus.NewRegistry()
	c := m.config()
	var log strings.Builder
	c.Registerer, c.Logger = registry, slog.New(slog.NewTextHandler(&log, nil))
	m.Clock = New(c)
	m.compare()
	m.remotes["redis"] = -5 * time.Second
	m.compare()
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "deputy_clock_offset_seconds" {
		t.Fatal(families, err)
	}
	got := map[string]float64{}
	for _, metric := range families[0].GetMetric() {
		got[metric.GetLabel()[0].GetValue()] = metric.GetGauge().GetValue()
	}
	if want := map[string]float64{"redis": -5, "wall": 0}; !maps.Equal(got, want) {
		t.Errorf("offsets %v, want %v", got, want)
	}
	m.wall = time.Hour
	m.compare()
	m.compare()
	m.wall = 0
	m.compare()
	if said := log.String(); strings.Count(said, "clock_distrusted") != 1 || strings.Count(said, "clock_trusted") != 1 {
		t.Errorf("logged:\n%s", said)
	}
}

func TestElapsedGrows(t *testing.T) {
	before := elapsed()
	for range 1000 {
		now := elapsed()
		if now < before {
			t.Fatal(now, before)
		}
		before = now
	}
}

func BenchmarkTrusted(b *testing.B) {
	c := New(Config{})
	c.Compare(b.Context())
	for b.Loop() {
		if c.Trusted() != nil {
			b.Fatal("not trusted")
		}
	}
}
