package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/e2e/lab"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestFirstDeployByTheCommandLine(t *testing.T) {
	w := newWorld(t)
	out := w.deploy("web", 8080, "v1")
	var steps []string
	for line := range strings.Lines(out) {
		if word := strings.Fields(line); strings.HasPrefix(line, "  ") {
			steps = append(steps, word[0])
		}
	}
	if diff := cmp.Diff([]string{"accepted", "built", "leased", "started", "healthy", "published"}, steps); diff != "" {
		t.Errorf("printed steps (-want +got):\n%s\n%s", diff, out)
	}
	if !strings.HasPrefix(out, "web-1\n") || !strings.Contains(out, "web-1 published") {
		t.Errorf("the output does not name the deployment: %s", out)
	}
	w.answers(8080, "v1")
	w.cli("retire", "web", "--wait")
	w.retired()
	if got, err := w.Clients.Get(at(8080)); err == nil {
		t.Errorf("a retired stack answers %q", got)
	}
}

func TestUpdateUnderLoad(t *testing.T) { eachBackend(t, updateUnderLoad) }

func updateUnderLoad(t *testing.T, w *world) {
	w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate)
	w.deploy("web", 8080, "v2")
	switched := time.Now()
	w.flowing(load, "v2", rate)
	w.await("web", 1, messages.Retired)
	w.flowing(load, "v2", rate)
	r := w.unfailing(load)
	for _, a := range r.Answers {
		if a.Body == "v1" && a.Begin.After(switched) {
			t.Errorf("v1 answered a connection opened %v after the command line had said published", a.Begin.Sub(switched))
		}
	}
	if mixed := r.Mixed("v1"); len(mixed) > 0 {
		t.Errorf("v1 answered %d connections that were opened after v2 had answered", len(mixed))
	}
}

func TestKeepAliveConnectionEndsWhereItBegan(t *testing.T) {
	eachBackend(t, keepAliveConnectionEndsWhereItBegan)
}

func keepAliveConnectionEndsWhereItBegan(t *testing.T, w *world) {
	w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	w.deploy("other", 8081, "v1")
	c := w.dial("tcp", at(8080))
	ask := func() {
		t.Helper()
		if got, err := lab.Ask(c, "/", true); err != nil || got != "v1" {
			t.Fatalf("the kept connection answers %q, %v; want v1", got, err)
		}
	}
	ask()
	w.deploy("web", 8080, "v2")
	ask()
	w.answers(8080, "v2")

	// A stack that was updated later, and has no connection, is through; this one is not.
	w.deploy("other", 8081, "v2", "--wait")
	if diff := cmp.Diff(firstSteps(messages.Published), w.verbs("web", 1)); diff != "" {
		t.Errorf("with a connection open (-want +got):\n%s", diff)
	}
	if s := w.head("web").GetDeployments()[0].GetState(); s != fulmarv1.State_STATE_DRAINING {
		t.Errorf("with a connection open web-1 is %s", s)
	}
	ask()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	w.await("web", 1, messages.Retired)
	w.answers(8080, "v2")
}

// firstSteps are the steps of a deployment up to one.
func firstSteps(last messages.Verb) []messages.Verb {
	steps := []messages.Verb{messages.Accepted}
	for v := messages.Accepted; v != last; {
		v = v.Awaited()
		steps = append(steps, v)
	}
	return steps
}

func TestConnectionIsResetWhenTheDrainTimeIsOver(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1", "--drain", "1s")
	c := w.dial("tcp", at(8080))
	if got, err := lab.Ask(c, "/", true); err != nil || got != "v1" {
		t.Fatalf("the connection answers %q, %v", got, err)
	}
	w.deploy("web", 8080, "v2", "--wait")
	w.until(func(context.Context) error { // the table is emptied of it by nat, when it hears that the instance was stopped
		got, err := lab.Ask(c, "/", true)
		if err == nil {
			return fmt.Errorf("the connection answers %q after its instance was retired", got)
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("the connection ends with %v, want a reset", err)
		}
		return nil
	})
}

func TestUDPFlowMovesAtTheSwitch(t *testing.T) { eachBackend(t, uDPFlowMovesAtTheSwitch) }

func uDPFlowMovesAtTheSwitch(t *testing.T, w *world) {
	w.up()
	w.connect()
	udp := []string{"--port", "5353:80/udp"}
	w.deploy("web", 8080, "v1", udp...)
	c := w.dial("udp", at(5353))
	source := netip.MustParseAddrPort(c.LocalAddr().String())
	echo := func() {
		t.Helper()
		w.until(func(context.Context) error {
			if err := c.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				return err
			}
			if _, err := c.Write([]byte("ping")); err != nil {
				return err
			}
			answer := make([]byte, 16)
			n, err := c.Read(answer)
			if err == nil && string(answer[:n]) != "ping" {
				err = fmt.Errorf("echo of ping is %q", answer[:n])
			}
			return err
		})
	}
	echo()
	first := w.address("web")
	if got := w.flow(source); got != first {
		t.Errorf("the flow goes to %s, want %s", got, first)
	}
	w.deploy("web", 8080, "v2", udp...)
	echo()
	if got, want := w.flow(source), w.address("web"); got != want || want == first {
		t.Errorf("after the switch the flow goes to %s, want %s, not %s", got, want, first)
	}
}

// flow gives who answers the UDP flow of a client, by the connection table.
func (w *world) flow(source netip.AddrPort) netip.Addr {
	w.t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		w.t.Fatal(err)
	}
	var found []netip.Addr
	for _, f := range flows {
		if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcPort == source.Port() && f.Forward.SrcIP.String() == source.Addr().String() {
			addr, _ := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
			found = append(found, addr)
		}
	}
	if len(found) != 1 {
		w.t.Fatalf("the connection table has %d flows from %s: %v", len(found), source, found)
	}
	return found[0]
}

func TestUnhealthyUpdateIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	before := w.snapshot()
	load := w.Load(at(8080), rate)
	w.flowing(load, "v1", rate/2)
	out, err := w.Fulmar(w.patient(), w.deployArgs("web", 8080, "v2", "--arg=--unhealthy", "--health", "http:80/", "--deadline", "6s")...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the command line ends with %v, want status 1", err)
	}
	if reason := "unit web at "; !strings.Contains(out, "failed") || !strings.Contains(out, reason) || !strings.Contains(out, "status 503") {
		t.Errorf("the output does not say why it failed: %s", out)
	}
	w.await("web", 2, messages.Retired)
	w.flowing(load, "v1", rate/2)
	r := w.unfailing(load)
	if diff := cmp.Diff(map[string]int{"v1": r.Requests}, r.Bodies); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	w.same(before)
}
