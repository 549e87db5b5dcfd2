package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestAPortGoesFromOneStackToAnother(t *testing.T) {
	w := newWorld(t)
	w.deploy("old", 8080, "v1")
	c := w.dial("tcp", at(8080))
	ask := func() {
		t.Helper()
		if got, err := lab.Ask(c, "/", true); err != nil || got != "v1" {
			t.Fatalf("the established connection answers %q, %v; want v1", got, err)
		}
	}
	ask()
	w.cli("retire", "old")
	ask()
	w.deploy("new", 8080, "v2")
	w.answers(8080, "v2")
	ask()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	w.await("old", 1, messages.Retired)
	w.answers(8080, "v2")
	w.cli("retire", "new", "--wait")
	w.retired()
}

func TestAStackMovesToAnotherNetwork(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	makeBridge(t, "more0", "10.82.0.1/24")
	w.cli("network", "add", "more", "10.82.0.1/24", "--bridge", "more0", "--host", lab.HostName)
	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate/5)
	w.deploy("web", 8080, "v2", "--network", "more", "--wait")
	w.flowing(load, "v2", rate/5)
	if mixed := w.unfailing(load).Mixed("v1"); len(mixed) > 0 {
		t.Errorf("v1 answered %d connections that were opened after v2 had answered", len(mixed))
	}
	if a := w.address("web"); !strings.HasPrefix(a.String(), "10.82.0.") {
		t.Errorf("the address is %s, not one of network more", a)
	}
	w.cli("retire", "web", "--wait")
	w.retired()
}

func TestTheLongestNamesAndManyPorts(t *testing.T) { eachBackend(t, theLongestNamesAndManyPorts) }

func theLongestNamesAndManyPorts(t *testing.T, w *world) {
	w.up()
	w.connect()
	stack, unit := strings.Repeat("s", 26), strings.Repeat("u", 25) // with a generation of ten digits all that albatross takes
	var ports []*fulmarv1.Port
	for i := range uint32(50) {
		ports = append(ports, &fulmarv1.Port{Port: 9000 + 2*i, Target: 80})
	}
	edit := func(r *fulmarv1.DeployRequest) {
		r.Units[0].Name, r.Units[0].Ports = unit, ports
	}
	for _, text := range []string{"v1", "v2"} {
		g := w.request(deploy, stack, w.hello(text, edit))
		if s := w.await(stack, g, messages.Published, messages.Failed, messages.Rejected); s.Verb != messages.Published {
			t.Fatal(s)
		}
		for _, p := range ports {
			w.answers(uint16(p.GetPort()), text)
		}
	}
	w.await(stack, 1, messages.Retired)
	w.cli("retire", stack, "--wait")
	w.retired()
}

func TestADeploymentFailsInTimeWhileAServiceIsAway(t *testing.T) {
	p := newParts(t)
	p.deploy("web", 8080, "v1")
	before := p.snapshot()
	for part, step := range map[string]messages.Verb{
		"vmm": messages.Started, "monitor": messages.Healthy, "nat": messages.Published,
	} {
		p.stop(part)
		out, err := p.Fulmar(p.patient(), p.deployArgs("web", 8080, "v2", "--deadline", "5s")...)
		if err == nil || !strings.Contains(out, "waited for "+string(step)) {
			t.Errorf("without %s the deployment ends with %v, and does not name %s: %s", part, err, step, out)
		}
		p.answers(8080, "v1")
		p.start(part)
		p.same(before)
	}
	p.cli("retire", "web", "--wait")
	p.retired()
}

func TestTheCommandLineShowsWhatThereIs(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	address := w.address("web").String()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"ps"}, []string{"web-1", "live", "web.web.1", address, "8080:80/tcp", "yes", "lab"}},
		{[]string{"describe", "web"}, []string{"stack web, newest generation 1", "web-1  live on host lab", address, "published"}},
		{[]string{"events", "web"}, []string{"accepted", "built", "leased", "started", "healthy", "published"}},
		{[]string{"logs", "web"}, []string{"web.web.1 | "}},
		{[]string{"network", "ls"}, []string{"default", "10.80.0.0/24", "fulmar0"}},
		{[]string{"lease", "ls"}, []string{address, "held", "web.web.1"}},
		{[]string{"gc", "--dry-run"}, []string{"nothing to sweep"}},
	} {
		w.until(func(ctx context.Context) error { // a console and a host's record come a moment later
			out, err := w.Fulmar(ctx, c.args...)
			for _, want := range c.want {
				if err == nil && !strings.Contains(out, want) {
					err = fmt.Errorf("fulmar %s does not show %q:\n%s", strings.Join(c.args, " "), want, out)
				}
			}
			return err
		})
		for line := range strings.Lines(w.cli(append([]string{"--json"}, c.args...)...)) {
			if !json.Valid([]byte(line)) {
				t.Errorf("fulmar --json %s prints %q", strings.Join(c.args, " "), line)
			}
		}
	}
}
