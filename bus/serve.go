package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Version is the version of every service, as the NATS micro framework shows it.
const Version = "0.1.0"

// Config is what the main of every service takes.
type Config struct {
	NATS  string `name:"nats" env:"NATS_URL" default:"nats://127.0.0.1:4222" help:"Bus to connect to."`
	Creds string `name:"creds" env:"NATS_CREDS" help:"File with the NATS credentials."`
	HTTP  string `name:"http" env:"FULMAR_HTTP" placeholder:"ADDR" help:"Address that serves /healthz and /metrics, as 127.0.0.1:9100. Empty: none."`
}

// Service is a service that runs until ctx ends, which is no error.
type Service interface {
	Run(ctx context.Context) error
}

// Serve is the body of every service's main: it connects, opens the bus, makes the service and runs it with its health,
// metrics and micro registration until ctx ends or a signal comes, which it returns as [run.ErrSignal].
func Serve(ctx context.Context, c Config, service, host string, log *slog.Logger, create func(*Bus, prometheus.Registerer) (Service, error)) error {
	log = log.With("service", service)
	nc, err := Connect(c.NATS, c.Creds, service)
	if err != nil {
		return err
	}
	defer nc.Close()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b, err := Open(ctx, nc, Options{Service: service, Host: host, Log: log, Register: reg})
	if err != nil {
		return err
	}
	svc, err := create(b, reg)
	if err != nil {
		return err
	}
	var g run.Group
	{
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return b.RunService(ctx, svc) }, func(error) { cancel() })
	}
	if c.HTTP != "" {
		if err := addHTTP(&g, c.HTTP, nc, reg); err != nil {
			return err
		}
	}
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))
	log.Info("service started", "nats", nc.ConnectedUrlRedacted())
	return g.Run()
}

// RunService registers a service with the NATS micro framework, tells systemd that it is ready, and runs it until ctx
// ends.
func (b *Bus) RunService(ctx context.Context, svc Service) error {
	meta := map[string]string{}
	if b.options.Host != "" {
		meta["host"] = b.options.Host
	}
	m, err := micro.AddService(b.NC, micro.Config{
		Name: "fulmar-" + b.options.Service, Version: Version, Metadata: meta,
		Description: "Fulmar's " + b.options.Service,
	})
	if err != nil {
		return fmt.Errorf("register %s: %w", b.options.Service, err)
	}
	defer func() {
		if err := m.Stop(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			b.Log.Warn("registration was not withdrawn", "err", err)
		}
	}()
	if err := addEndpoints(ctx, m, svc); err != nil {
		return err
	}
	if err := b.NC.FlushTimeout(grace); err != nil { // who is ready can be asked
		return fmt.Errorf("register %s: %w", b.options.Service, err)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		b.Log.Warn("systemd was not notified", "err", err)
	}
	return svc.Run(ctx)
}

// ServeHTTP adds an actor that answers /healthz, 200 while healthy is nil, and /metrics.
func ServeHTTP(g *run.Group, addr string, reg *prometheus.Registry, healthy func() error) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for health and metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	g.Add(func() error { return s.Serve(l) }, func(error) { _ = s.Close() })
	return nil
}

func addHTTP(g *run.Group, addr string, nc *nats.Conn, reg *prometheus.Registry) error {
	return ServeHTTP(g, addr, reg, func() error {
		if !nc.IsConnected() {
			return fmt.Errorf("the bus is not connected: %s", nc.Status())
		}
		return nil
	})
}

// HostName is the short name of this machine, in lower case: the default for the host of a service.
func HostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	short, _, _ := strings.Cut(name, ".")
	return strings.ToLower(short)
}
