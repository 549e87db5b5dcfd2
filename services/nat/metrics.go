package nat

import (
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/conntrack"
)

type metrics struct {
	switches    prometheus.Counter
	seconds     prometheus.Histogram
	restores    *prometheus.CounterVec
	unexplained prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		switches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_nat_switches_total", Help: "Generations that clients were led to.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fulmar_nat_switch_duration_seconds", Help: "Of the change of the rules.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}),
		restores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_nat_restores_total", Help: "Times that rules were missing and were restored, by what made nat look.",
		}, []string{"cause"}),
		unexplained: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fulmar_nat_unexplained_deployments", Help: "Deployments that the kernel has rules of and no record explains.",
		}),
	}
	usage := func(name, help string, value func(conntrack.Usage) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			u, err := conntrack.ReadUsage()
			if err != nil {
				return 0 // nothing is tracked yet
			}
			return float64(value(u))
		})
	}
	r.MustRegister(m.switches, m.seconds, m.restores, m.unexplained,
		usage("fulmar_nat_connections", "Entries of the connection table.", func(u conntrack.Usage) int { return u.Count }),
		usage("fulmar_nat_connections_limit", "Entries that the connection table may have.", func(u conntrack.Usage) int { return u.Max }))
	return m
}
