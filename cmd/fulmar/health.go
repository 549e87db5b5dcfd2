package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// health is how an instance is that is watched, as its monitor said last.
type health struct {
	Instance string     `json:"instance"`
	Health   string     `json:"health"` // healthy, unhealthy or unknown
	Since    *time.Time `json:"since,omitempty"`
	Reason   string     `json:"reason,omitempty"`
}

// String is one clause for people.
func (h health) String() string {
	switch {
	case h.Health == "":
		return "-"
	case h.Since == nil:
		return h.Health
	}
	return h.Health + " since " + h.Since.Local().Format(time.DateTime)
}

// because is String with the reason.
func (h health) because() string {
	if h.Reason == "" {
		return h.String()
	}
	return h.String() + ": " + h.Reason
}

// healthIn is the health of an instance in a deployment, which counts only there where it is watched.
func healthIn(d *fulmarv1.HeadDeployment, h health) health {
	if d.GetState() != fulmarv1.State_STATE_LIVE && d.GetState() != fulmarv1.State_STATE_STAGED {
		return health{}
	}
	return h
}

// atOnce is how many observations are asked for at a time, so that many instances take few ways to a bus that is far away.
const atOnce = 32

// healths gives how the instances of some heads are, by their names. Those that are neither live nor staged nobody watches.
func (e *env) healths(b *bus.Bus, heads map[string]*fulmarv1.Head, running map[string]*fulmarv1.HostInstance) (map[string]health, error) {
	hosts := map[string]bool{}
	for _, h := range heads {
		for _, d := range watched(h) {
			hosts[d.GetHost()] = true
		}
	}
	monitors, err := e.serving(b, "monitor", slices.Collect(maps.Keys(hosts))...)
	if err != nil {
		return nil, err
	}
	events, err := b.JS.Stream(e.ctx, messages.EventStream)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	all, asked := map[string]health{}, map[string]bool{}
	var mu sync.Mutex // guards all
	g, ctx := errgroup.WithContext(e.ctx)
	g.SetLimit(atOnce)
	for stack, h := range heads {
		for _, d := range watched(h) {
			for _, i := range d.GetInstances() {
				if asked[i.GetName()] {
					continue // a newer deployment keeps it, whose checks count
				}
				asked[i.GetName()] = true
				g.Go(func() error {
					verb, last, err := observed(ctx, events, stack, d, i.GetUnit())
					if err != nil {
						return err
					}
					last.Instance, last.Health = i.GetName(), verdict(verb, monitors[d.GetHost()], running[i.GetName()])
					if last.Health != "unhealthy" {
						last.Since, last.Reason = nil, ""
					}
					mu.Lock()
					defer mu.Unlock()
					all[i.GetName()] = last
					return nil
				})
			}
		}
	}
	return all, g.Wait()
}

// watched gives the deployments of a head that a monitor watches, the newest first.
func watched(h *fulmarv1.Head) []*fulmarv1.HeadDeployment {
	var all []*fulmarv1.HeadDeployment
	for _, d := range slices.Backward(h.GetDeployments()) {
		if d.GetState() == fulmarv1.State_STATE_LIVE || d.GetState() == fulmarv1.State_STATE_STAGED {
			all = append(all, d)
		}
	}
	return all
}

// observed gives what was observed last of a unit, when, and why.
func observed(ctx context.Context, events jetstream.Stream, stack string, d *fulmarv1.HeadDeployment, unit string) (messages.Verb, health, error) {
	raw, err := events.GetLastMsgForSubject(ctx, messages.ObservationSubject(stack, d.GetGeneration(), "*", d.GetHost(), unit))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", health{}, nil
	}
	if err != nil {
		return "", health{}, fmt.Errorf("last observation of unit %s of %s: %w", unit, messages.DeploymentName(stack, d.GetGeneration()), err)
	}
	said := &fulmarv1.Event{}
	subject, err := messages.ParseEventSubject(raw.Subject)
	if err == nil {
		err = proto.Unmarshal(raw.Data, said)
	}
	if err != nil { // its verb is enough, if it has one
		said = &fulmarv1.Event{Reason: fmt.Sprintf("event %d cannot be read", raw.Sequence)}
	}
	return subject.Verb, health{Since: &raw.Time, Reason: said.GetReason()}, nil
}

// verdict says how an instance is. That nothing bad was observed says something only while somebody looks.
func verdict(last messages.Verb, watched bool, seen *fulmarv1.HostInstance) string {
	switch {
	case last == messages.Unhealthy || last == messages.Exited:
		return "unhealthy"
	case !watched || !seen.GetRunning():
		return "unknown"
	}
	return "healthy"
}

// healthText says a check as --health of fulmar deploy has it, and how often it is made.
func healthText(c *fulmarv1.HealthCheck) string {
	text := ""
	switch p := c.GetProbe().(type) {
	case *fulmarv1.HealthCheck_Icmp:
		text = "icmp"
	case *fulmarv1.HealthCheck_Tcp:
		text = fmt.Sprintf("tcp:%d", p.Tcp.GetPort())
	case *fulmarv1.HealthCheck_Http:
		text = fmt.Sprintf("http:%d%s", p.Http.GetPort(), p.Http.GetPath())
		if status := p.Http.GetStatus(); status != 0 {
			text += fmt.Sprintf("=%d", status)
		}
		if body := p.Http.GetBody(); body != "" {
			text += fmt.Sprintf(" with body %q", body)
		}
	case *fulmarv1.HealthCheck_Dns:
		text = fmt.Sprintf("dns:%d/%s", p.Dns.GetPort(), p.Dns.GetName())
	}
	if c.GetInterval() != nil {
		text += " every " + c.GetInterval().AsDuration().String()
	}
	return text
}

// unitText says how a unit is watched and what it runs on.
func unitText(u *fulmarv1.UnitSpec) string {
	var checks, cpus []string
	for _, c := range u.GetHealth() {
		checks = append(checks, healthText(c))
	}
	for _, id := range u.GetCpus() {
		cpus = append(cpus, strconv.FormatUint(uint64(id), 10))
	}
	or := func(text, absent string) string {
		if text == "" {
			return absent
		}
		return text
	}
	return fmt.Sprintf("health %s; restart %s; CPUs %s; net device %s", or(strings.Join(checks, ", "), "none"), or(u.GetRestart(), "never"),
		or(strings.Join(cpus, ","), "any"), or(u.GetDevice(), "the only one"))
}
