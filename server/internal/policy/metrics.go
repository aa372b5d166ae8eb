package policy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests to OpenFGA, not decisions: those are the exchange's.
type metrics struct {
	seconds *prometheus.HistogramVec
	checks  prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) (metrics, error) {
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
	}
	if registerer == nil {
		return m, nil
	}
	for _, collector := range []prometheus.Collector{m.seconds, m.checks} {
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
