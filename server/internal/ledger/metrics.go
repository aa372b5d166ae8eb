package ledger

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"deputy.example/deputy/client/delegation"
)

// metrics have no label that names a tenant or a principal.
type metrics struct {
	queued  prometheus.Gauge
	batches *prometheus.CounterVec // by result
	size    prometheus.Histogram
	latency *prometheus.HistogramVec // by kind and outcome
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		queued: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "deputy_ledger_queue_depth", Help: "Drafts that wait for their transaction."}),
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "deputy_ledger_batches_total", Help: "Transactions by result: committed, failed, or unknown."}, []string{"result"}),
		size: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "deputy_ledger_batch_size", Help: "Drafts in one transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 10)}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "deputy_ledger_append_seconds", Help: "Time from a draft to its durable record, by kind and outcome.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2, 15)}, []string{"kind", "outcome"}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queued, m.batches, m.size, m.latency} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) committed(items int, err error) {
	m.size.Observe(float64(items))
	result := "committed"
	switch {
	case errors.Is(err, errUnresolved):
		result = "unknown"
	case err != nil:
		result = "failed"
	}
	m.batches.WithLabelValues(result).Inc()
}

func (m *metrics) appended(kind Kind, took time.Duration, err error) {
	outcome := "recorded"
	if err != nil {
		outcome = string(delegation.AsError(err).Reason)
	}
	m.latency.WithLabelValues(string(kind), outcome).Observe(took.Seconds())
}
