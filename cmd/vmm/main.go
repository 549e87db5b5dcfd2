// Command vmm starts and stops the instances of one host. See package vmm.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/albatross/remote"
	"fulmar/bus"
	"fulmar/services/vmm"
)

type config struct {
	bus.Config
	Host       string       `env:"FULMAR_HOST" placeholder:"NAME" help:"Name of this host. Default: the short name of this machine."`
	Dir        string       `env:"VMM_DIR" default:"/run/fulmar" help:"Run directory of the daemon, which holds util/vmmd.sock: of host, or of an albatross."`
	Path       string       `env:"VMM_PATH" placeholder:"LABEL:..." help:"Path in albatross's names that the instances are below. Empty: the root."`
	Cache      string       `env:"VMM_CACHE" default:"/var/cache/fulmar/images" help:"Directory that images are kept in."`
	CacheBytes int64        `env:"VMM_CACHE_BYTES" default:"1073741824" help:"Images that are kept, in bytes."`
	Targets    []string     `env:"VMM_TARGETS" default:"spt" help:"Targets that the daemon runs, as spt,hvt."`
	CPUs       []int        `name:"cpus" env:"VMM_CPUS" help:"CPU ids of units that name none. A real albatrossd wants some."`
	Remote     remoteConfig `embed:""`
	vmm.InfluxFlags
}

// remoteConfig is a daemon on another machine.
type remoteConfig struct {
	Remote   string `env:"VMM_REMOTE" placeholder:"HOST:PORT" help:"TLS endpoint of a daemon on another machine, asked in place of --dir. Needs --cert and --key."`
	CA       string `name:"ca" env:"VMM_CA" placeholder:"FILE" help:"Root CA of the endpoint (default: the root in --cert)."`
	Cert     string `env:"VMM_CERT" placeholder:"FILE" help:"Certificate of the CA that signs commands, and those up to the root. The instances are in the CA's path."`
	Key      string `env:"VMM_KEY" placeholder:"FILE" help:"Private key of --cert."`
	Consoles int    `env:"VMM_CONSOLES" default:"16" help:"Consoles that are followed at once, those of the youngest instances. Each is a connection to the endpoint."`
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
	c, err := cfg.vmm()
	if err != nil {
		return err
	}
	return bus.Serve(ctx, cfg.Config, "vmm", c.Host, log, func(b *bus.Bus, reg prometheus.Registerer) (bus.Service, error) {
		return vmm.New(b, c, reg)
	})
}

// vmm is the configuration of the service.
func (cfg config) vmm() (vmm.Config, error) {
	c := vmm.Config{
		Host: cmp.Or(cfg.Host, bus.HostName()), Dir: cfg.Dir, Path: cfg.Path, Cache: cfg.Cache, CacheBytes: cfg.CacheBytes,
		Targets: cfg.Targets, CPUs: cfg.CPUs, Influx: cfg.InfluxFlags.Config(),
	}
	if cfg.Remote.Remote == "" {
		return c, nil
	}
	if cfg.Path != "" {
		return c, errors.New("the path is that of the CA with which a remote daemon is asked: give no --path")
	}
	endpoint, err := remote.LoadEndpoint(cfg.Remote.Remote, cfg.Remote.CA, cfg.Remote.Cert, cfg.Remote.Key)
	if err != nil {
		return c, fmt.Errorf("ask a remote daemon: %w", err)
	}
	path, err := endpoint.CA.Path()
	if err != nil {
		return c, fmt.Errorf("ask a remote daemon: %w", err)
	}
	c.Path, c.Remote = path.String(), &vmm.Remote{Client: endpoint.Client(), Consoles: cfg.Remote.Consoles}
	return c, nil
}
