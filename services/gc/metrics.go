package gc

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	condemned   *prometheus.CounterVec
	orphans     prometheus.Counter
	unexplained prometheus.Gauge
	failures    prometheus.Counter
	sweep       prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		condemned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_gc_condemned_total", Help: "Deployments that were condemned: failed, kept, ended, idle or timeout.",
		}, []string{"cause"}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_gc_orphans_total", Help: "Instances that belonged to nobody and were drained.",
		}),
		unexplained: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_gc_unexplained_instances", Help: "Instances that run and that no head explains; they are left alone.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_gc_sweep_failures_total", Help: "Sweeps that were incomplete.",
		}),
		sweep: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fulmar_gc_sweep_duration_seconds", Help: "Length of a sweep.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
	}
	if r != nil {
		r.MustRegister(m.condemned, m.orphans, m.unexplained, m.failures, m.sweep)
	}
	return m
}
