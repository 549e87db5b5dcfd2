// Command gc lets what was replaced or has failed go. See package gc.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/services/gc"
)

type config struct {
	bus.Config
	Host  string        `env:"FULMAR_HOST" placeholder:"NAME" help:"Host whose deployments it looks after. Default: the short name of this machine."`
	Sweep time.Duration `env:"GC_SWEEP" default:"10s" help:"Time between two sweeps."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("gc"), kong.Description("Lets what was replaced or has failed go."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("gc stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	if cfg.Host == "" {
		cfg.Host = bus.HostName()
	}
	return bus.Serve(ctx, cfg.Config, "gc", cfg.Host, log, func(b *bus.Bus, reg prometheus.Registerer) (bus.Service, error) {
		return gc.New(b, gc.Config{Host: cfg.Host, Sweep: cfg.Sweep}, reg)
	})
}
