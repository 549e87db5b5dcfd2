package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/e2e/lab"
	"fulmar/messages"
)

// parts are the parts of Fulmar that run, each in a process of its own.
type parts struct {
	*world
	running map[string]*lab.Process
}

// newParts makes a lab in which every part of Fulmar runs in a process of its own, and a network.
func newParts(t *testing.T) *parts {
	t.Helper()
	p := &parts{world: newLab(t), running: map[string]*lab.Process{}}
	makeBridge(t, lab.Bridge, "10.80.0.1/24")
	p.start("bus")
	p.connect()
	p.cli("network", "add", "default", "10.80.0.1/24", "--bridge", lab.Bridge, "--host", lab.HostName)
	for _, part := range lab.Parts()[1:] {
		p.start(part)
	}
	return p
}

func (p *parts) start(part string) {
	p.t.Helper()
	process, err := p.StartPart(part)
	if err != nil {
		p.t.Fatal(err)
	}
	p.keep(process)
	p.running[part] = process
}

func (p *parts) stop(part string) {
	p.t.Helper()
	if err := p.running[part].Stop(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *parts) kill(part string) {
	p.t.Helper()
	if err := p.running[part].Kill(); err != nil {
		p.t.Fatal(err)
	}
}

func TestEveryServiceInAProcessOfItsOwn(t *testing.T) {
	p := newParts(t)
	p.deploy("web", 8080, "v1")
	load := p.Load(at(8080), rate)
	p.flowing(load, "v1", rate/5)
	p.deploy("web", 8080, "v2", "--wait")
	p.flowing(load, "v2", rate/5)
	p.unfailing(load)
	p.cli("retire", "web", "--wait")
	p.retired()
}

func TestUnikernelsServeWhileHostIsAway(t *testing.T) {
	p := newParts(t)
	p.deploy("web", 8080, "v1")
	p.deploy("other", 8081, "v1")
	pids := p.pids()
	load := p.Load(at(8080), rate)
	for _, end := range []func(string){p.stop, p.kill} {
		end("host")
		p.flowing(load, "v1", rate/5)
		if diff := cmp.Diff(pids, p.pids()); diff != "" {
			t.Errorf("processes without host (-before +after):\n%s", diff)
		}
		p.start("host")
		p.flowing(load, "v1", rate/5)
		if diff := cmp.Diff(pids, p.pids()); diff != "" {
			t.Errorf("processes with host again (-before +after):\n%s", diff)
		}
		p.runs("web.web.1", "other.other.2")
	}
	p.cli("retire", "other", "--wait") // what was adopted is stopped as any other

	p.kill("host") // what is asked for meanwhile waits
	generation := p.request(deploy, "web", p.hello("v2"))
	p.await("web", generation, messages.Leased)
	p.flowing(load, "v1", rate/5)
	p.start("host")
	p.await("web", generation, messages.Published)
	p.flowing(load, "v2", rate/5)
	p.await("web", 1, messages.Retired)
	p.unfailing(load)
	p.cli("retire", "web", "--wait")
	p.retired()
}

// runs waits until the command line shows instances as running.
func (w *world) runs(instances ...string) {
	w.t.Helper()
	w.until(func(ctx context.Context) error {
		out, err := w.Fulmar(ctx, "ps")
		if err != nil {
			return err
		}
		for _, i := range instances {
			shown := false
			for line := range strings.Lines(out) {
				f := strings.Fields(line) // deployment, state, unit, instance, address, ports, runs ("yes", or "yes, again (1)"), host
				shown = shown || len(f) >= 8 && f[1] == "live" && f[3] == i && strings.HasPrefix(f[6], "yes")
			}
			if !shown {
				return fmt.Errorf("ps does not show that %s runs:\n%s", i, out)
			}
		}
		return nil
	})
}
