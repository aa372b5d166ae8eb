package exchange

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count outcomes and measure the time of steps. No label holds a value that a caller sent:
// tenants, steps and reasons are closed sets.
type metrics struct {
	outcomes *prometheus.CounterVec
	steps    *prometheus.HistogramVec
	strange  *prometheus.CounterVec
	mended   *prometheus.CounterVec

	signedSize *prometheus.GaugeVec
	signedTime *prometheus.GaugeVec
	unsigned   *prometheus.GaugeVec
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
		mended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_revocation_lists_mended_total",
			Help: "Rebuilds of the lists of revocations in Redis because they were lost, old or damaged.",
		}, []string{"tenant", "cause"}),
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"tenant"})
	}
	m.signedSize = gauge("deputy_checkpoint_entries", "Entries that the newest signed checkpoint covers.")
	m.signedTime = gauge("deputy_checkpoint_time_seconds", "When it was signed, in seconds since 1970.")
	m.unsigned = gauge("deputy_checkpoint_failing", "1 while no checkpoint can be signed: alert on it.")
	if registerer != nil {
		registerer.MustRegister(m.outcomes, m.steps, m.strange, m.mended, m.signedSize, m.signedTime, m.unsigned)
	}
	return m
}

func (m *metrics) checkpoint(tenant string, size uint64, at time.Time, err error) {
	failing := 0.0
	if err != nil {
		failing = 1
	}
	m.unsigned.WithLabelValues(tenant).Set(failing)
	if size > 0 {
		m.signedSize.WithLabelValues(tenant).Set(float64(size))
		m.signedTime.WithLabelValues(tenant).Set(float64(at.Unix()))
	}
}

func (m *metrics) step(name string, began time.Time) {
	m.steps.WithLabelValues(name).Observe(time.Since(began).Seconds())
}
