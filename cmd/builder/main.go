// Command builder accepts requests and gets their images. See package builder.
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
	"fulmar/services/builder"
	"fulmar/services/builder/watch"
)

type config struct {
	bus.Config
	FileRoot string        `env:"BUILDER_FILE_ROOT" help:"Directory below which a request may name image files. Empty: none."`
	MaxImage int64         `env:"BUILDER_MAX_IMAGE" default:"268435456" help:"Largest image, in bytes."`
	Fetch    time.Duration `env:"BUILDER_FETCH" default:"5m" help:"Longest time for an image that comes from a URL."`
	Patience time.Duration `env:"BUILDER_PATIENCE" default:"30s" help:"How long a source that fails is tried again."`
	watch.Flags
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("builder"), kong.Description("Accepts requests for deployments and gets their images."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("builder stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	return bus.Serve(ctx, cfg.Config, "builder", "", log, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
		follow, err := cfg.Flags.Config("", r)
		if err != nil {
			return nil, err
		}
		return builder.New(b, builder.Config{FileRoot: cfg.FileRoot, MaxImage: cfg.MaxImage, Fetch: cfg.Fetch, Patience: cfg.Patience, Watch: follow}), nil
	})
}
