// Command vmm starts and stops the instances of one host. See package vmm.
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
	"fulmar/services/vmm"
)

type config struct {
	bus.Config
	Host       string   `env:"FULMAR_HOST" placeholder:"NAME" help:"Name of this host. Default: the short name of this machine."`
	Dir        string   `env:"VMM_DIR" default:"/run/albatross" help:"Run directory of the albatross daemon, which holds util/vmmd.sock."`
	Path       string   `env:"VMM_PATH" placeholder:"LABEL:..." help:"Path in albatross's names that the instances are below. Empty: the root."`
	Cache      string   `env:"VMM_CACHE" default:"/var/cache/fulmar/images" help:"Directory that images are kept in."`
	CacheBytes int64    `env:"VMM_CACHE_BYTES" default:"1073741824" help:"Images that are kept, in bytes."`
	Targets    []string `env:"VMM_TARGETS" default:"spt" help:"Targets that the daemon runs."`
	CPUs       []int    `name:"cpus" env:"VMM_CPUS" help:"CPU ids of units that name none. A real albatrossd wants some."`
}

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("vmm"), kong.Description("Starts and stops the instances of one host."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("vmm stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	if cfg.Host == "" {
		cfg.Host = bus.HostName()
	}
	return bus.Serve(ctx, cfg.Config, "vmm", cfg.Host, log, func(b *bus.Bus, reg prometheus.Registerer) (bus.Service, error) {
		return vmm.New(b, vmm.Config{
			Host: cfg.Host, Dir: cfg.Dir, Path: cfg.Path, Cache: cfg.Cache, CacheBytes: cfg.CacheBytes,
			Targets: cfg.Targets, CPUs: cfg.CPUs,
		}, reg)
	})
}
