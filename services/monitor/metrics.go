package monitor

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	checks    *prometheus.CounterVec
	trial     prometheus.Histogram
	watched   prometheus.Gauge
	unhealthy prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_monitor_checks_total", Help: "Health checks by their kind and result: good, bad.",
		}, []string{"probe", "result"}),
		trial: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fulmar_monitor_healthy_duration_seconds", Help: "From the start of a deployment until it was healthy.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
		}),
		watched: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_monitor_watched", Help: "Instances that are live or staged on the host.",
		}),
		unhealthy: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_monitor_unhealthy", Help: "Watched instances that are unhealthy or have exited.",
		}),
	}
	r.MustRegister(m.checks, m.trial, m.watched, m.unhealthy)
	return m
}
