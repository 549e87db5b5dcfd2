// Command ipam gives addresses and keeps deadlines. See package ipam.
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
	"fulmar/services/ipam"
)

type config struct {
	bus.Config
	Rest  time.Duration `env:"IPAM_REST" default:"1m" help:"How long an address rests after its instance is gone, before another one gets it."`
	Sweep time.Duration `env:"IPAM_SWEEP" default:"30s" help:"Time between two sweeps of leases that no head explains."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("ipam"), kong.Description("Gives unikernels their addresses and keeps the deadlines of deployments."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("ipam stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	return bus.Serve(ctx, cfg.Config, "ipam", "", log, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
		return ipam.New(b, ipam.Config{Rest: cfg.Rest, Sweep: cfg.Sweep}, r), nil
	})
}
