// Command monitor runs the monitor of a host: it probes what starts on it and watches what is live or staged.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/services/monitor"
)

type config struct {
	bus.Config
	Host string `env:"FULMAR_HOST" default:"${hostname}" help:"Name of the host that is monitored."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("monitor"), kong.Description("Probes what starts on a host and watches what is live or staged on it."),
		kong.Vars{"hostname": hostname()})
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("monitor stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	return bus.Serve(ctx, cfg.Config, "monitor", cfg.Host, log, func(b *bus.Bus, reg prometheus.Registerer) (bus.Service, error) {
		return monitor.New(b, monitor.Config{Host: cfg.Host}, reg)
	})
}

// hostname is the short name of the machine, or nothing, which is refused, if it has none.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	short, _, _ := strings.Cut(name, ".")
	return strings.ToLower(short)
}
