// Command builder accepts requests and gets their images. See package builder.
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
	"fulmar/services/builder"
)

type config struct {
	bus.Config
	builder.Flags
	FileRoot string `env:"BUILDER_FILE_ROOT" help:"Directory below which a request may name files: images, OCI layouts, repositories. Empty: none."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("builder"), kong.Description("Accepts requests for deployments and gets their images."), kong.Vars{"host": bus.HostName()})
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("builder stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	return bus.Serve(ctx, cfg.Config, "builder", "", log, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
		c, err := cfg.Flags.Config(cfg.FileRoot, r)
		if err != nil {
			return nil, err
		}
		return builder.New(b, c, r), nil
	})
}
