package server

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	deputyv1 "deputy.example/deputy/gen/deputy/v1"
	"deputy.example/deputy/server/internal/testservers"
)

// TestASteppedClockIsNoticed moves only the wall clock of one of two instances.
func TestASteppedClockIsNoticed(t *testing.T) {
	for name, dsn := range map[string]func() string{
		"sqlite": func() string { return "sqlite://DIR/ledger.db" }, "postgres": func() string { return testservers.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.text = strings.Replace(s.text, "sqlite://DIR/ledger.db", dsn(), 1)
			right := s.start(t)
			var ahead atomic.Int64
			s.options.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			wrong := s.start(t)
			exchanges := func(i *instance) error {
				_, err := deputyv1.NewTokenExchangeServiceClient(i.conn).Exchange(t.Context(), s.request(t))
				return err
			}
			for _, step := range []time.Duration{40 * time.Minute, -3 * time.Second, -48 * time.Hour} {
				ahead.Store(int64(step))
				if err := exchanges(wrong); err == nil {
					t.Errorf("%v: an exchange was granted", step)
				}
				wrong.await(t, []string{"clock"})
				if err := exchanges(right); err != nil {
					t.Errorf("%v: the other instance: %v", step, err)
				}
				ahead.Store(0)
				wrong.await(t, nil)
				if err := exchanges(wrong); err != nil {
					t.Errorf("set right after %v: %v", step, err)
				}
			}
			if _, said := get(t, "http://"+wrong.OpsAddr()+"/metrics"); !strings.Contains(said, `deputy_clock_offset_seconds{source="wall"}`) {
				t.Error("no metric of the wall clock")
			}
			if !strings.Contains(s.log.String(), "clock_distrusted") {
				t.Error("nothing was logged")
			}
		})
	}
}

func TestClockBound(t *testing.T) {
	for name, c := range map[string]struct {
		clock Clock
		skews []time.Duration
		want  time.Duration // 0: refused
	}{
		"default":              {Clock{}, []time.Duration{0}, 2 * time.Second},
		"a short skew":         {Clock{}, []time.Duration{0, time.Second}, time.Second},
		"as long as the skew":  {Clock{5 * time.Second}, []time.Duration{0}, 5 * time.Second},
		"longer than one skew": {Clock{4 * time.Second}, []time.Duration{time.Minute, 3 * time.Second}, 0},
		"too short":            {Clock{time.Millisecond}, []time.Duration{0}, 0},
	} {
		var tenants []Tenant
		for _, skew := range c.skews {
			tenants = append(tenants, Tenant{Skew: skew})
		}
		var p problems
		c.clock.check(&p, tenants)
		if err := p.err(); (err == nil) != (c.want != 0) || err == nil && c.clock.Bound != c.want {
			t.Errorf("%s: %v, %v; want %v", name, c.clock.Bound, err, c.want)
		} else if err != nil && !strings.Contains(err.Error(), "clock.bound") {
			t.Errorf("%s: %v does not name the field", name, err)
		}
	}
}
