package exchange

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count outcomes and time steps. No label ever holds what a caller sent: tenants, steps and
// reasons are closed sets.
type metrics struct {
	outcomes *prometheus.CounterVec
	steps    *prometheus.HistogramVec
	strange  *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_exchange_outcomes_total",
			Help: "Children that were asked for, by tenant and reason; the reason of a grant is granted.",
		}, []string{"tenant", "reason"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "deputy_exchange_step_seconds",
			Help:    "Time of each step of an exchange.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 2, 17),
		}, []string{"step"}),
		strange: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_unauthenticated_calls_total",
			Help: "Calls that were refused before a caller was known; these are not in the ledger.",
		}, []string{"reason"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.outcomes, m.steps, m.strange)
	}
	return m
}

func (m *metrics) step(name string, began time.Time) {
	m.steps.WithLabelValues(name).Observe(time.Since(began).Seconds())
}
