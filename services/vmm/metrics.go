package vmm

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	creates       *prometheus.CounterVec
	createSeconds prometheus.Histogram
	destroys      *prometheus.CounterVec
	images        *prometheus.CounterVec
	looks         *prometheus.CounterVec
	lines         prometheus.Counter
	samples       prometheus.Counter
	influx        *prometheus.CounterVec
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
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_vmm_stats_samples_total", Help: "Samples of what instances use that the daemon told.",
		}),
		influx: counters("fulmar_vmm_influx_lines_total", "Lines for influx by their end: sent, or dropped because it did not take them.", "result"),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_vmm_running_instances", Help: "Instances that run, as of the last look.",
		}),
	}
	if r != nil {
		r.MustRegister(m.creates, m.createSeconds, m.destroys, m.images, m.looks, m.lines, m.samples, m.influx, m.running)
	}
	return m
}

// influxed counts lines for influx.
func (m metrics) influxed(lines int, sent bool) {
	result := "dropped"
	if sent {
		result = "sent"
	}
	m.influx.WithLabelValues(result).Add(float64(lines))
}
