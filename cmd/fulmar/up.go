package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder"
	"fulmar/services/gc"
	"fulmar/services/host"
	"fulmar/services/ipam"
	"fulmar/services/monitor"
	"fulmar/services/nat"
	"fulmar/services/vmm"
)

type upCmd struct {
	Data     string        `default:"/var/lib/fulmar" env:"FULMAR_DATA" help:"Directory of what must stay through a boot."`
	RunDir   string        `default:"/run/fulmar" env:"FULMAR_RUN_DIR" help:"Directory of the host's sockets."`
	Listen   string        `default:"127.0.0.1:4222" env:"FULMAR_LISTEN" help:"Address of the bus."`
	Host     string        `default:"${host}" env:"FULMAR_HOST" help:"Name of this host."`
	Network  string        `default:"default" help:"Network to make if there is none at all; where there is one, this, --bridge and --prefix say nothing."`
	Bridge   string        `default:"fulmar0" help:"Its bridge, made if it is missing."`
	Prefix   netip.Prefix  `default:"10.80.0.1/24" help:"Its prefix, with this host's own address in it."`
	Cgroup   string        `default:"fulmar" help:"Control group of the unikernels, below /sys/fs/cgroup. It is theirs alone: nothing else may be in it."`
	UIDBase  int           `default:"900000" help:"First of 65536 user and group ids of unikernels, at least 65536."`
	FileRoot string        `default:"/" help:"Directory below which a request may name files: images, OCI layouts, repositories. Empty: none."`
	Rest     time.Duration `default:"1m" help:"How long an address rests before another instance gets it."`
	HTTP     string        `name:"http" placeholder:"ADDR" env:"FULMAR_HTTP" help:"Address that serves /healthz and /metrics. Empty: none."`
	Verbose  bool          `short:"v" help:"Log every step."`
	vmm.InfluxFlags
	builder.Flags
	nat.FirewallFlags
}

// Run runs everything until a signal comes.
func (c *upCmd) Run(e *env) error {
	if err := messages.CheckName("host", c.Host); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("up needs root: it makes taps, cgroups and firewall rules")
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		return errors.New("up needs iptables, which publishes ports and is not in $PATH: apt install iptables, or what your distribution has for it")
	}
	level := slog.LevelWarn
	if c.Verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: level}))
	if risk := exposed(c.Listen); risk != "" {
		log.Warn("bus was opened beyond this machine", "listen", c.Listen, "risk", risk)
	}
	err := c.serve(e, log)
	if e.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // it was asked to end, and be it before it was up
	}
	return err
}

// serve runs everything until the context of the command ends.
func (c *upCmd) serve(e *env, log *slog.Logger) error {
	server, err := bus.StartServer(filepath.Join(c.Data, "bus"), c.Listen)
	if err != nil {
		return err
	}
	defer server.Stop()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	networks, err := c.networks(e.ctx, server, log)
	if err != nil {
		return err
	}
	var g run.Group
	daemon, healthy, err := c.addHost(&g, log, reg)
	if err != nil {
		return err
	}
	if err := c.addServices(&g, server, daemon, log, reg); err != nil {
		return err
	}
	if c.HTTP != "" {
		if err := bus.ServeHTTP(&g, c.HTTP, reg, healthy); err != nil {
			return err
		}
	}
	g.Add(run.ContextHandler(e.ctx))
	{
		ctx, cancel := context.WithCancel(context.Background())
		g.Add(func() error { return named("up", c.keepBridges(ctx, server, log)) }, func(error) { cancel() })
	}
	{
		ctx, cancel := context.WithCancel(context.Background())
		g.Add(func() error {
			if err := c.reported(ctx, server); err != nil {
				return named("up", err)
			}
			if ctx.Err() != nil {
				return nil
			}
			fmt.Fprintf(e.out, "fulmar %s is up on host %s: bus %s, %s\n", bus.Version, c.Host, server.URL(), networks)
			<-ctx.Done()
			return nil
		}, func(error) { cancel() })
	}
	return g.Run()
}

// networks makes the network if there is none, and the bridges of this host's networks that are missing. It goes on without
// a network whose record or bridge is no good: the others need not suffer for it, and it can be removed once the bus is up.
func (c *upCmd) networks(ctx context.Context, server *bus.Server, log *slog.Logger) (string, error) {
	nc, err := server.Connect("up")
	if err != nil {
		return "", err
	}
	defer nc.Close()
	b, err := bus.Open(ctx, nc, bus.Options{Service: "up", Host: c.Host})
	if err != nil {
		return "", err
	}
	all, bad, err := b.Networks.Readable(ctx)
	if err != nil {
		return "", err
	}
	for _, u := range bad {
		log.Error("network was left out", "network", u.Key, "err", u, "cure", "fulmar network add "+u.Key+" writes it anew, fulmar network rm "+u.Key+" removes it; then start again")
	}
	if len(all)+len(bad) == 0 {
		n, err := c.firstNetwork(ctx, b)
		if err != nil {
			return "", err
		}
		all[n.GetName()] = n
	}
	var made []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		n := all[key]
		if n.GetHost() != c.Host {
			continue
		}
		if err := ensureBridge(n); err != nil {
			log.Error("network was left out", "network", key, "err", err, "cure", "fulmar network add "+key+" with another --bridge changes it, fulmar network rm "+key+" removes it")
			continue
		}
		made = append(made, fmt.Sprintf("network %s %s on bridge %s", n.GetName(), n.GetPrefix(), n.GetBridge()))
	}
	if len(made) == 0 {
		return "no network on this host", nil
	}
	return strings.Join(made, ", "), nil
}

// firstNetwork makes the network of the flags, and its bridge before: one that is no good is not written down.
func (c *upCmd) firstNetwork(ctx context.Context, b *bus.Bus) (*fulmarv1.Network, error) {
	n := &fulmarv1.Network{Name: c.Network, Host: c.Host, Bridge: c.Bridge, Prefix: c.Prefix.Masked().String(), Gateway: c.Prefix.Addr().String()}
	if err := messages.CheckNetwork(n); err != nil {
		return nil, err
	}
	if err := ensureBridge(n); err != nil {
		return nil, err
	}
	return n, b.Networks.Put(ctx, n.GetName(), n, 0)
}

// reported waits until vmm has told the bus what the host runs: from then on a deployment meets nothing that still
// starts.
func (c *upCmd) reported(ctx context.Context, server *bus.Server) error {
	begin := time.Now()
	nc, err := server.Connect("up")
	if err != nil {
		return err
	}
	defer nc.Close()
	b, err := bus.Open(ctx, nc, bus.Options{Service: "up", Host: c.Host})
	if err != nil {
		return err
	}
	var g errgroup.Group
	ctx, cancel := context.WithCancel(ctx)
	hosts := b.Hosts.View()
	g.Go(func() error { return hosts.Run(ctx) })
	for ctx.Err() == nil {
		changed := hosts.Changed()
		if hosts.All()[c.Host].GetSeen().AsTime().After(begin) {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	cancel()
	return g.Wait()
}

// addHost adds the host, and gives what tells whether it answers on its sockets.
func (c *upCmd) addHost(g *run.Group, log *slog.Logger, reg prometheus.Registerer) (*host.Service, func() error, error) {
	svc, err := host.New(host.Config{RunDir: c.RunDir, StateDir: filepath.Join(c.Data, "host"), Cgroup: c.Cgroup, UIDBase: c.UIDBase}, log.With("service", "host"), reg)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.Add(func() error { return named("host", svc.Run(ctx)) }, func(error) { cancel() })
	return svc, func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return svc.Healthy(ctx)
	}, nil
}

// addServices adds the six services, each with a connection of its own. They begin when the host, which is daemon, is ready.
func (c *upCmd) addServices(g *run.Group, server *bus.Server, daemon *host.Service, log *slog.Logger, reg *prometheus.Registry) error {
	services := []struct {
		name, host string
		create     func(*bus.Bus, prometheus.Registerer) (bus.Service, error)
	}{
		{"builder", "", func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			config, err := c.Flags.Config(c.FileRoot, r)
			if err != nil {
				return nil, err
			}
			return builder.New(b, config, r), nil
		}},
		{"ipam", "", func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			return ipam.New(b, ipam.Config{Rest: c.Rest, Sweep: 30 * time.Second}, r), nil
		}},
		{"vmm", c.Host, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			return vmm.New(b, vmm.Config{Host: c.Host, Dir: c.RunDir, Cache: filepath.Join(c.Data, "images"), Targets: daemon.Targets(), Influx: c.InfluxFlags.Config()}, r)
		}},
		{"monitor", c.Host, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			return monitor.New(b, monitor.Config{Host: c.Host}, r)
		}},
		{"nat", c.Host, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			return nat.New(b, nat.Config{Host: c.Host, FirewallFlags: c.FirewallFlags}, r)
		}},
		{"gc", c.Host, func(b *bus.Bus, r prometheus.Registerer) (bus.Service, error) {
			return gc.New(b, gc.Config{Host: c.Host}, r)
		}},
	}
	for _, s := range services {
		nc, err := server.Connect(s.name)
		if err != nil {
			return err
		}
		r := prometheus.WrapRegistererWith(prometheus.Labels{"service": s.name}, reg)
		b, err := bus.Open(context.Background(), nc, bus.Options{Service: s.name, Host: s.host, Log: log.With("service", s.name), Register: r})
		if err != nil {
			return err
		}
		svc, err := s.create(b, r)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		g.Add(func() error {
			defer nc.Close()
			select {
			case <-daemon.Ready():
				return named(s.name, b.RunService(ctx, svc))
			case <-ctx.Done():
				return nil
			}
		}, func(error) { cancel() })
	}
	return nil
}

// named says which service ended.
func named(service string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", service, err)
	}
	return nil
}
