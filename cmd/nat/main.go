// Command nat publishes what is healthy on one host: it leads the host's ports to the instances that are live. It needs
// CAP_NET_ADMIN and iptables, and acts in the network namespace it is started in.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/services/nat"
)

type config struct {
	bus.Config
	nat.FirewallFlags
	Host string `env:"FULMAR_HOST" placeholder:"NAME" help:"Host whose ports it publishes. Default: the short name of this machine."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("nat"), kong.Description("Publishes what is healthy on one host."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("nat stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	if cfg.Host == "" {
		cfg.Host = bus.HostName()
	}
	return bus.Serve(ctx, cfg.Config, "nat", cfg.Host, log, func(b *bus.Bus, reg prometheus.Registerer) (bus.Service, error) {
		return nat.New(b, nat.Config{Host: cfg.Host, FirewallFlags: cfg.FirewallFlags}, reg)
	})
}
