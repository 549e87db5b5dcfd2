package watch

import (
	"github.com/prometheus/client_golang/prometheus"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

type metrics struct {
	looks    *prometheus.CounterVec
	sent     prometheus.Counter
	webhooks *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_builder_looks_total", Help: "Looks at followed sources by their end: same, moved (since the last look), failed.",
		}, []string{"source", "result"}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_builder_watch_requests_total", Help: "Requests that were sent because a source had moved.",
		}),
		webhooks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_builder_webhooks_total", Help: "Webhooks by their end: asked (for a look), unknown (nobody follows it), ignored (no push), unverified, bad, busy, failed (here).",
		}, []string{"provider", "result"}),
	}
	r.MustRegister(m.looks, m.sent, m.webhooks)
	return m
}

func (m metrics) looked(images map[string]*fulmarv1.Image, sources []*fulmarv1.WatchedSource, answers []Answer) {
	for i, s := range sources {
		kind := "http"
		switch images[s.GetUnit()].GetSource().(type) {
		case *fulmarv1.Image_Git:
			kind = "git"
		case *fulmarv1.Image_Docker:
			kind = "docker"
		}
		result := "same"
		switch {
		case answers[i].Err != nil:
			result = "failed"
		case s.GetFound() != "" && s.GetFound() != answers[i].Value:
			result = "moved"
		}
		m.looks.WithLabelValues(kind, result).Inc()
	}
}
