package policy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests to OpenFGA and what made them unnecessary. The exchange counts decisions.
type metrics struct {
	seconds      *prometheus.HistogramVec
	checks       prometheus.Counter
	remembered   prometheus.Counter
	fallbacks    prometheus.Counter
	readings     *prometheus.CounterVec
	forgotten    *prometheus.CounterVec
	contradicted prometheus.Counter
}

// The labels of readings and forgotten.
const (
	unchanged, changed, incomplete, failed = "unchanged", "changed", "incomplete", "failed"
	ofUser, ofType, ofAll                  = "user", "type", "all"
)

func newMetrics(registerer prometheus.Registerer, memory bool) (metrics, error) {
	m := metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "deputy_policy_request_seconds",
			Help:    "Time that one request to OpenFGA took, by outcome: answered or unavailable.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2},
		}, []string{"outcome"}),
		checks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deputy_policy_checks_total",
			Help: "Relationship checks put to OpenFGA, after deduplication.",
		}),
		remembered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deputy_policy_remembered_total",
			Help: "Relationships answered from memory, after a reading of the changelog.",
		}),
		fallbacks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deputy_policy_fallbacks_total",
			Help: "Relationships that were remembered but asked from OpenFGA, because the changelog could not be read.",
		}),
		readings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_policy_readings_total",
			Help: "Readings of OpenFGA's changelog that waiting questions shared, by outcome: unchanged, changed, incomplete or failed.",
		}, []string{"outcome"}),
		forgotten: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_policy_forgotten_total",
			Help: "Times that decisions were forgotten, by reach: some of one user, all of some relations, or all.",
		}, []string{"reach"}),
		contradicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "deputy_policy_contradicted_total",
			Help: "1 after OpenFGA's changelog was found incomplete. No decision is remembered any more.",
		}),
	}
	if registerer == nil {
		return m, nil
	}
	collectors := []prometheus.Collector{m.seconds, m.checks}
	if memory {
		collectors = append(collectors, m.remembered, m.fallbacks, m.readings, m.forgotten, m.contradicted)
		for _, outcome := range []string{unchanged, changed, incomplete, failed} {
			m.readings.WithLabelValues(outcome)
		}
		for _, reach := range []string{ofUser, ofType, ofAll} {
			m.forgotten.WithLabelValues(reach)
		}
	}
	for _, collector := range collectors {
		if err := registerer.Register(collector); err != nil {
			return metrics{}, err
		}
	}
	return m, nil
}

func (m metrics) observe(checks int, took time.Duration, err error) {
	outcome := "answered"
	if err != nil {
		outcome = "unavailable"
	}
	m.seconds.WithLabelValues(outcome).Observe(took.Seconds())
	m.checks.Add(float64(checks))
}
