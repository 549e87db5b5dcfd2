// Command host is a daemon that runs Solo5 unikernels and serves albatross's protocol. When it ends, they run on.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fulmar/services/host"
	"fulmar/solo5"
)

type config struct {
	RunDir     string        `env:"HOST_RUN_DIR" default:"/run/fulmar" help:"Directory of the sockets util/vmmd.sock, util/console.sock and util/stat.sock, and of the FIFOs."`
	StateDir   string        `env:"HOST_STATE_DIR" default:"/var/lib/fulmar/host" help:"Directory of what must stay through a boot: what runs, and its images."`
	Cgroup     string        `env:"HOST_CGROUP" default:"fulmar" help:"Control group of all unikernels, below /sys/fs/cgroup. It is theirs alone: host does not start if it holds anything else, and no other host may use it."`
	UIDBase    int           `env:"HOST_UID_BASE" default:"900000" help:"First of 65536 user and group ids, at least 65536; each unikernel runs under one of its own."`
	MaxImage   int           `env:"HOST_MAX_IMAGE" default:"256" help:"Largest image and request, in MB."`
	RootPolicy bool          `env:"HOST_ROOT_POLICY" help:"Let all unikernels together use no more than this machine has, and only bridges that there are at start."`
	StatsEvery time.Duration `env:"HOST_STATS_EVERY" default:"10s" help:"Time between two statistics of a unikernel."`
	Tender     string        `env:"HOST_TENDER" placeholder:"FILE" help:"Program that looks after a virtual machine; every user must be allowed to run it. Empty: the fulmar-hvt beside this one, or this one."`
	HTTP       string        `name:"http" env:"HOST_HTTP" placeholder:"ADDR" help:"Address that serves /healthz and /metrics. Empty: none."`
}

func main() {
	solo5.HVTMain() // if this process is to look after a virtual machine
	var cfg config
	kong.Parse(&cfg, kong.Name("host"), kong.Description("Runs Solo5 unikernels and serves albatross's protocol. When it ends, they run on."))
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("service", "host")
	if err := serve(context.Background(), cfg, log); !errors.Is(err, run.ErrSignal) {
		log.Error("host stopped", "err", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	sockets, err := activation.ListenersWithNames()
	if err != nil {
		return fmt.Errorf("take over sockets: %w", err)
	}
	hostConfig := host.Config{
		RunDir: cfg.RunDir, StateDir: cfg.StateDir, Cgroup: cfg.Cgroup, UIDBase: cfg.UIDBase, MaxImage: cfg.MaxImage << 20, RootPolicy: cfg.RootPolicy, StatsEvery: cfg.StatsEvery, Tender: cfg.Tender,
		VMMD: first(sockets["vmmd"]), Console: first(sockets["console"]), Stats: first(sockets["stat"]),
	}
	svc, err := host.New(hostConfig, log, reg)
	if err != nil {
		return err
	}
	var g run.Group
	{
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return svc.Run(ctx) }, func(error) { cancel() })
	}
	{
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return notify(ctx, svc, log) }, func(error) { cancel() })
	}
	if cfg.HTTP != "" {
		if err := addHTTP(&g, cfg.HTTP, reg, svc); err != nil {
			return err
		}
	}
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))
	return g.Run()
}

// first is the socket that systemd handed over under a name, or nil.
func first(sockets []net.Listener) net.Listener {
	if len(sockets) == 0 {
		return nil
	}
	return sockets[0]
}

// notify tells systemd that host is ready, and then as often as it wants that host still answers.
func notify(ctx context.Context, svc *host.Service, log *slog.Logger) error {
	select {
	case <-ctx.Done():
		return nil
	case <-svc.Ready():
	}
	log.Info("host started")
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("ask for systemd's watchdog: %w", err)
	}
	if interval == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := svc.Healthy(ctx); err != nil {
				log.Error("host did not answer itself, systemd was not told that it is alive", "err", err)
				continue
			}
			if _, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); err != nil {
				return fmt.Errorf("notify systemd: %w", err)
			}
		}
	}
}

// addHTTP adds an actor that answers /healthz and /metrics.
func addHTTP(g *run.Group, addr string, reg *prometheus.Registry, svc *host.Service) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for health and metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := svc.Healthy(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	g.Add(func() error { return s.Serve(l) }, func(error) { _ = s.Close() })
	return nil
}
