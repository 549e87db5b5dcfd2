package vmm

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	creates       *prometheus.CounterVec
	createSeconds prometheus.Histogram
	destroys      *prometheus.CounterVec
	images        *prometheus.CounterVec
	looks         *prometheus.CounterVec
	lines         prometheus.Counter
	running       prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := metrics{
		creates: counters("fulmar_vmm_creates_total", "Creates by their end: created or failed.", "result"),
		createSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fulmar_vmm_create_duration_seconds", Help: "From asking the daemon to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		destroys: counters("fulmar_vmm_destroys_total", "Destroys by their end: destroyed or failed.", "result"),
		images:   counters("fulmar_vmm_images_total", "Images by where they came from: cached or fetched.", "source"),
		looks:    counters("fulmar_vmm_looks_total", "Looks at what runs by their end: same, written or failed.", "result"),
		lines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_vmm_console_lines_total", Help: "Console lines that were passed on.",
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_vmm_running_instances", Help: "Instances that run, as of the last look.",
		}),
	}
	if r != nil {
		r.MustRegister(m.creates, m.createSeconds, m.destroys, m.images, m.looks, m.lines, m.running)
	}
	return m
}
