package builder

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/messages"
)

type metrics struct {
	running   prometheus.Gauge
	builds    *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	differing prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_builder_builds_running", Help: "Images that are being made from Docker, OCI or Git.",
		}),
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_builder_builds_total", Help: "Images from Docker, OCI or Git by their end: made, cached, refused, cancelled, retried.",
		}, []string{"source", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fulmar_builder_build_duration_seconds", Help: "Time to make an image that was not cached.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 16),
		}, []string{"source"}),
		differing: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_builder_differing_total", Help: "Images that differed from an earlier one that was made from the same.",
		}),
	}
	if r != nil {
		r.MustRegister(m.running, m.builds, m.seconds, m.differing)
	}
	return m
}

// made counts an image that was made or not, after a time.
func (m *metrics) made(ctx context.Context, kind string, took time.Duration, err error) {
	result := "made"
	if err != nil {
		result = "retried"
		if _, refused := messages.AsRefusal(err); refused {
			result = "refused"
		}
		if ctx.Err() != nil {
			result = "cancelled"
		}
	}
	if m.builds.WithLabelValues(kind, result).Inc(); result == "made" {
		m.seconds.WithLabelValues(kind).Observe(took.Seconds())
	}
}
