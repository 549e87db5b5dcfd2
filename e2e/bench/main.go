// Command bench measures what docs/PERFORMANCE.md says: from request to published, by step, with few and with many
// instances live; the floors in the same run; updates under load; and what the whole costs when idle. It runs in
// network namespaces of its own and prints Markdown.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"fulmar/bus"
	"fulmar/e2e/lab"
	"fulmar/examples/hello"
	"fulmar/messages"
)

const port = 8080

type config struct {
	Updates   int   `default:"100" help:"Updates that are measured with each number of instances live."`
	Live      []int `default:"10,100,200,1000" help:"Instances that are live beside it."`
	Switches  int   `default:"100" help:"Updates under load."`
	Rate      int   `default:"500" help:"New connections a second of the load."`
	Beside    int   `default:"200" help:"Instances that are live beside the updates under load; one of --live. A bridge has 1,023 ports, and what drains has one, too."`
	IdleTime  int   `default:"30" help:"Seconds of the idle part, with each number of instances live."`
	FloorRuns int   `default:"100" help:"Runs of each floor."`

	FirewallBackend string `default:"iptables" help:"Of nat: iptables or nftables."`
}

func main() {
	var c config
	kong.Parse(&c, kong.Name("bench"))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (c config) run(ctx context.Context) (err error) {
	if err := lab.Enter(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fulmar-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New(dir, filepath.Dir(self))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	image, err := hello.Build(ctx, dir)
	if err != nil {
		return err
	}
	up, err := l.Up("--prefix", "10.80.0.1/16", "--firewall-backend", c.FirewallBackend)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Stop()) }()
	nc, err := bus.Connect("nats://127.0.0.1:4222", "", "bench")
	if err != nil {
		return err
	}
	defer nc.Close()
	b, err := bus.Open(ctx, nc, bus.Options{Service: "bench"})
	if err != nil {
		return err
	}
	digest, err := store(ctx, b, image)
	if err != nil {
		return err
	}
	events, err := b.JS.Stream(ctx, messages.EventStream)
	if err != nil {
		return err
	}
	m := &measure{config: c, lab: l, bus: b, events: events, image: image, digest: digest, up: up.Pid()}
	fmt.Printf("%s, published with %s\n\n", machine(), c.FirewallBackend)
	for _, part := range []func(context.Context) error{m.floors, m.published, m.clean} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// underLoad updates a published stack again and again while clients make new connections, and says how that went.
func (m *measure) underLoad(ctx context.Context) (string, error) {
	if _, err := m.deploy(ctx, "web", "v0", port); err != nil {
		return "", err
	}
	load := m.lab.Load(netip.AddrPortFrom(netip.MustParseAddr(lab.HostAddr), port), m.config.Rate)
	var ends []run
	for i := range m.config.Switches {
		r, err := m.deploy(ctx, "web", fmt.Sprintf("v%d", i+1), port)
		if err != nil {
			return "", fmt.Errorf("update %d, with %d failed requests so far: %w", i+1, load.Stop().Failed, err)
		}
		ends = append(ends, r)
	}
	result := load.Stop()
	slow := slowest(ends)
	var text strings.Builder
	fmt.Fprintf(&text, "## %d updates under %d new connections a second, beside %d live instances\n\n", m.config.Switches, m.config.Rate, len(m.stacks))
	fmt.Fprintf(&text, "requests %d, failed %d %v, slowest answer %s; request to published: median %s, p99 %s, slowest %s:",
		result.Requests, result.Failed, result.Errors, ms(result.Slowest), ms(quantile(totals(ends), .5)), ms(quantile(totals(ends), .99)), ms(slow.total))
	for _, v := range order {
		fmt.Fprintf(&text, " %s %s", v, ms(slow.steps[v]))
	}
	text.WriteString("\n\n")
	return text.String(), m.alone(ctx, "web")
}

// machine says where the figures come from.
func machine() string {
	cpu := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(text), "\n") {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	var u syscall.Utsname
	kernel := "unknown kernel"
	if syscall.Uname(&u) == nil {
		var b []byte
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			b = append(b, byte(c))
		}
		kernel = "Linux " + string(b)
	}
	tables, _ := exec.Command("iptables", "--version").Output()
	return fmt.Sprintf("%d cores of %s, %s, %s, %s", runtime.NumCPU(), cpu, kernel, strings.TrimSpace(string(tables)), runtime.Version())
}
