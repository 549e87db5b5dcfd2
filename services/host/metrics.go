package host

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what host tells Prometheus.
type metrics struct {
	commands        *prometheus.CounterVec
	commandDuration *prometheus.HistogramVec
	startDuration   prometheus.Histogram
	exits           *prometheus.CounterVec
	restarts        prometheus.Counter
	adopted         prometheus.Counter
	missed          prometheus.Counter
	connections     *prometheus.CounterVec
}

// newMetrics registers the metrics; running counts the unikernels.
func newMetrics(reg prometheus.Registerer, running func() float64) (*metrics, error) {
	buckets := []float64{.0005, .001, .002, .003, .005, .01, .02, .05, .1, .5, 1, 5}
	m := &metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_host_commands_total", Help: "Commands answered, by command and result (ok, refused, failed).",
		}, []string{"command", "result"}),
		commandDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fulmar_host_command_duration_seconds", Help: "Time from a request to its reply.", Buckets: buckets,
		}, []string{"command"}),
		startDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fulmar_host_start_duration_seconds", Help: "Time to make a process of a checked image and let it run.", Buckets: buckets,
		}),
		exits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_host_exits_total", Help: "Unikernels that ended, by how (zero, nonzero, signal, unknown).",
		}, []string{"how"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_host_restarts_total", Help: "Unikernels started again after they ended by themselves or after a boot.",
		}),
		adopted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_host_adopted_total", Help: "Unikernels that ran already when host started.",
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fulmar_host_console_missed_lines_total", Help: "Console lines that a subscriber was too slow for.",
		}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fulmar_host_connections_total", Help: "Connections of clients, by result (accepted, refused).",
		}, []string{"result"}),
	}
	unikernels := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fulmar_host_unikernels", Help: "Unikernels that run."}, running)
	var errs []error
	for _, c := range []prometheus.Collector{
		m.commands, m.commandDuration, m.startDuration, m.exits, m.restarts, m.adopted, m.missed, m.connections, unikernels,
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
