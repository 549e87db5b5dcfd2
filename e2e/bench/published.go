package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"fulmar/bus"
	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	memory   = 16               // MB of each hello
	patience = 60 * time.Second // for one deployment
)

// measure is one run of the benchmark.
type measure struct {
	config config
	lab    *lab.Lab
	bus    *bus.Bus
	events jetstream.Stream
	image  string // file
	digest string
	up     int // pid of fulmar up
	stacks []string
}

// run is one deployment, timed.
type run struct {
	total time.Duration // from before the request to the news that it is published
	steps map[messages.Verb]time.Duration
}

var order = []messages.Verb{messages.Accepted, messages.Built, messages.Leased, messages.Started, messages.Healthy, messages.Published}

func store(ctx context.Context, b *bus.Bus, image string) (string, error) {
	text, err := os.ReadFile(image)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	_, err = b.Images.PutBytes(ctx, digest, text)
	return digest, err
}

// deploy deploys hello and waits until it is published. Port 0 publishes none.
func (m *measure) deploy(ctx context.Context, stack, text string, port uint32) (run, error) {
	u := &fulmarv1.UnitSpec{
		Image: &fulmarv1.Image{Source: &fulmarv1.Image_Object{Object: m.digest}}, Memory: memory,
		Args:   []string{"--ipv4={{.IP}}/{{.PrefixLen}}", "--ipv4-gateway={{.Gateway}}", "--hello=" + text},
		Health: []*fulmarv1.HealthCheck{{Probe: &fulmarv1.HealthCheck_Tcp{Tcp: &fulmarv1.TcpProbe{Port: 80}}, Interval: durationpb.New(10 * time.Second)}},
	}
	if port != 0 {
		u.Ports = []*fulmarv1.Port{{Port: port, Target: 80}}
	}
	body, err := proto.Marshal(&fulmarv1.DeployRequest{Units: []*fulmarv1.UnitSpec{u}})
	if err != nil {
		return run{}, err
	}
	news := make(chan *nats.Msg, 16)
	sub, err := m.bus.NC.ChanSubscribe("fulmar.event."+stack+".*.*.*", news)
	if err != nil {
		return run{}, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := m.bus.NC.Flush(); err != nil {
		return run{}, err
	}
	begin := time.Now()
	generation, err := m.bus.Request(ctx, fulmarv1.Kind_KIND_DEPLOY, stack, body)
	if err != nil {
		return run{}, err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return run{}, ctx.Err()
		case <-timeout.C:
			return run{}, fmt.Errorf("%s is not published after %s", messages.DeploymentName(stack, generation), patience)
		case msg := <-news:
			s, err := messages.ParseEventSubject(msg.Subject)
			if err != nil || s.Generation != generation {
				continue
			}
			if s.Verb == messages.Failed || s.Verb == messages.Rejected {
				e := &fulmarv1.Event{}
				return run{}, errors.Join(proto.Unmarshal(msg.Data, e), fmt.Errorf("%s %s: %s", messages.DeploymentName(stack, generation), s.Verb, e.GetReason()))
			}
			if s.Verb == messages.Published {
				r := run{total: time.Since(begin)}
				r.steps, err = m.steps(ctx, stack, generation)
				return r, err
			}
		}
	}
}

// steps reads from the log how long each step took, by the bus's clock.
func (m *measure) steps(ctx context.Context, stack string, generation uint64) (map[messages.Verb]time.Duration, error) {
	steps := map[messages.Verb]time.Duration{}
	var before time.Time
	for _, v := range order {
		msg, err := m.events.GetLastMsgForSubject(ctx, messages.StepSubject(stack, generation, v, "*"))
		if err != nil {
			return nil, fmt.Errorf("look up %s of %s: %w", v, messages.DeploymentName(stack, generation), err)
		}
		if before.IsZero() {
			e := &fulmarv1.Event{}
			if err := proto.Unmarshal(msg.Data, e); err != nil {
				return nil, err
			}
			before = e.GetDeployment().GetRequested().AsTime()
		}
		steps[v] = msg.Time.Sub(before)
		before = msg.Time
	}
	return steps, nil
}

// fill deploys stacks until so many instances are live.
func (m *measure) fill(ctx context.Context, live int) error {
	for len(m.stacks) < live {
		stack := fmt.Sprintf("s%d", len(m.stacks))
		if _, err := m.deploy(ctx, stack, stack, uint32(10000+len(m.stacks))); err != nil {
			return err
		}
		m.stacks = append(m.stacks, stack)
	}
	return nil
}

// published measures updates of one stack beside more and more live ones, and what it costs to have these.
func (m *measure) published(ctx context.Context) error {
	fmt.Printf("## Request to published\n\n| live | updates | median | p99 |")
	for _, v := range order {
		fmt.Printf(" %s |", v)
	}
	fmt.Printf(" bare exec | heard |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	var idle, load strings.Builder
	for i, live := range m.config.Live {
		if err := m.fill(ctx, live); err != nil {
			return err
		}
		if err := m.beside(ctx, i); err != nil {
			return err
		}
		line, err := m.idle(ctx)
		if err != nil {
			return err
		}
		idle.WriteString(line)
		if live == m.config.Beside {
			text, err := m.underLoad(ctx)
			if err != nil {
				return err
			}
			load.WriteString(text)
		}
	}
	fmt.Printf("\nThe steps are medians, and those of the slowest update. A bare exec, as in the floors, followed each update: its median shows how busy the machine was just then. "+
		"Heard is how many frames each update sent to an idle unikernel, and woke it with.\n\n"+
		"## Idle\n\nWhat `fulmar up` (bus, host and all services in one process) costs over %d s in which nothing happens but health checks:\n\n"+
		"| live | of one core | resident |\n|---|---|---|\n%s\n%s", m.config.IdleTime, idle.String(), load.String())
	return nil
}

// beside measures updates beside the stacks that are live, in round i.
func (m *measure) beside(ctx context.Context, i int) error {
	var runs []run
	var execs []time.Duration
	before, err := heard(m.stacks[0])
	if err != nil {
		return err
	}
	for n := range m.config.Updates {
		r, err := m.deploy(ctx, "web", fmt.Sprintf("%d-%d", i, n), port)
		if err != nil {
			return err
		}
		if err := m.alone(ctx, "web"); err != nil {
			return err
		}
		if n > 0 { // the first one replaces nothing
			runs = append(runs, r)
		}
		took, err := m.bareExec(ctx, m.config.FloorRuns+i*m.config.Updates+n)
		if err != nil {
			return err
		}
		execs = append(execs, took)
	}
	after, err := heard(m.stacks[0])
	if err != nil {
		return err
	}
	fmt.Printf("| %d | %d | %s | %s |", len(m.stacks), len(runs), ms(quantile(totals(runs), .5)), ms(quantile(totals(runs), .99)))
	for _, v := range order {
		fmt.Printf(" %s |", ms(quantile(step(runs, v), .5)))
	}
	fmt.Printf(" %s | %.1f |\n", ms(quantile(execs, .5)), float64(after-before)/float64(m.config.Updates))
	slow := slowest(runs)
	fmt.Printf("| | slowest | %s | |", ms(slow.total))
	for _, v := range order {
		fmt.Printf(" %s |", ms(slow.steps[v]))
	}
	fmt.Printf(" | |\n")
	return nil
}

// heard is how many frames the unikernel of a stack has read from its tap.
func heard(stack string) (uint64, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list the links: %w", err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Alias, ":"+stack+".") {
			return l.Attrs().Statistics.TxPackets, nil
		}
	}
	return 0, fmt.Errorf("stack %s has no tap", stack)
}

// alone waits until what a deployment replaced is retired, so that the next one is measured by itself.
func (m *measure) alone(ctx context.Context, stack string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		head, _, err := m.bus.Heads.Get(ctx, stack)
		if err != nil || len(head.GetDeployments()) <= 1 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stack %s still has %d deployments: %w", stack, len(head.GetDeployments()), ctx.Err())
		case <-tick.C:
		}
	}
}

// clean retires everything and sees that nothing is left behind.
func (m *measure) clean(ctx context.Context) error {
	for _, stack := range append(m.stacks, "web") {
		if _, err := m.bus.Request(ctx, fulmarv1.Kind_KIND_RETIRE, stack, nil); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := m.lab.Clean(ctx); err != nil {
		return err
	}
	fmt.Println("Everything was retired, and no tap, control group or rule was left.")
	return nil
}

func slowest(runs []run) run {
	return slices.MaxFunc(runs, func(a, b run) int { return cmp.Compare(a.total, b.total) })
}

func totals(runs []run) []time.Duration {
	var d []time.Duration
	for _, r := range runs {
		d = append(d, r.total)
	}
	return d
}

func step(runs []run, v messages.Verb) []time.Duration {
	var d []time.Duration
	for _, r := range runs {
		d = append(d, r.steps[v])
	}
	return d
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Nanoseconds())/1e6) }
