package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/e2e/lab"
	"fulmar/messages"
)

func TestRulesComeBackByThemselves(t *testing.T) { eachBackend(t, rulesComeBackByThemselves) }

func rulesComeBackByThemselves(t *testing.T, w *world) {
	w.up()
	w.connect()
	w.deploy("web", 8080, "v1", "--port", "5353:80/udp")
	w.deploy("other", 8081, "v1")
	rules, err := lab.Rules()
	if err != nil {
		t.Fatal(err)
	}
	c := w.dial("tcp", at(8080))
	flush := func(tables ...string) func(*testing.T) {
		return func(t *testing.T) {
			w := w.in(t)
			if err := lab.FlushRules(tables...); err != nil {
				t.Fatal(err)
			}
			w.until(func(context.Context) error {
				for _, port := range []uint16{8080, 8081} {
					if got, err := w.Clients.Get(at(port)); err != nil || got != "v1" {
						return fmt.Errorf("port %d answers %q, %w", port, got, err)
					}
				}
				now, err := lab.Rules()
				if err != nil {
					return err
				}
				if diff := cmp.Diff(rules, now); diff != "" {
					return differs(diff)
				}
				return nil
			})
			if got, err := lab.Ask(c, "/", true); err != nil || got != "v1" {
				t.Errorf("the established connection answers %q, %v", got, err)
			}
		}
	}
	for _, table := range []string{"filter", "nat", "mangle", "raw"} {
		t.Run(table, flush(table))
	}
	t.Run("all", flush())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	w.deploy("web", 8080, "v2", "--port", "5353:80/udp")
	w.answers(8080, "v2")
	for _, stack := range []string{"web", "other"} {
		w.cli("retire", stack, "--wait")
	}
	w.retired()
}

func TestUnikernelsServeWhileEverythingIsAway(t *testing.T) {
	w := newLab(t)
	up := w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	w.deploy("other", 8081, "v1")
	pids := w.pids()
	load := w.Load(at(8080), rate)
	for _, end := range []func(*lab.Process) error{(*lab.Process).Stop, (*lab.Process).Kill} {
		if err := end(up); err != nil {
			t.Fatal(err)
		}
		w.flowing(load, "v1", rate/5)
		up = w.up()
		w.flowing(load, "v1", rate/5)
		w.runs("web.web.1", "other.other.2")
		if diff := cmp.Diff(pids, w.pids()); diff != "" {
			t.Errorf("processes (-before +after):\n%s", diff)
		}
	}
	w.deploy("web", 8080, "v2", "--wait")
	w.flowing(load, "v2", rate/5)
	w.unfailing(load)
	for _, stack := range []string{"web", "other"} {
		w.cli("retire", stack, "--wait")
	}
	w.retired()
}

func TestPublishedStacksComeBackAfterABoot(t *testing.T) {
	eachBackend(t, publishedStacksComeBackAfterABoot)
}

func publishedStacksComeBackAfterABoot(t *testing.T, w *world) {
	up := w.up()
	w.connect()
	w.deploy("web", 8080, "v1")
	w.deploy("other", 8081, "v1")
	w.deploy("gone", 8082, "v1")
	w.cli("retire", "gone", "--wait")
	w.until(func(context.Context) error { // its rules go a moment later
		rules, err := lab.Rules()
		if err == nil && strings.Contains(strings.Join(rules, "\n"), "gone-3") {
			err = errors.New("rules of gone-3 are left")
		}
		return err
	})
	before := w.snapshot()
	instances := w.live("web").GetInstances()

	// The power fails: all processes end at once, and the kernel forgets everything.
	if err := up.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.Reset(); err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(w.Dir, "boot_id")
	if err := os.WriteFile(boot, []byte("00000000-0000-4000-8000-000000000001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	up, err := w.StartIn("mount --bind "+boot+" /proc/sys/kernel/random/boot_id", "fulmar", " is up ", w.UpArgs(w.args...)...)
	if err != nil {
		t.Fatal(err)
	}
	w.keep(up)
	for _, port := range []uint16{8080, 8081} {
		w.until(func(context.Context) error {
			got, err := w.Clients.Get(at(port))
			if err == nil && got != "v1" {
				err = fmt.Errorf("port %d answers %q", port, got)
			}
			return err
		})
	}
	w.runs("web.web.1", "other.other.2")
	w.compare(before, cmpopts.IgnoreFields(snapshot{}, "Host", "Resting")) // some hooks come after the port answers
	if diff := cmp.Diff(fmt.Sprint(instances), fmt.Sprint(w.live("web").GetInstances())); diff != "" {
		t.Errorf("instances (-before the boot +after):\n%s", diff)
	}
	w.deploy("web", 8080, "v2", "--wait")
	w.answers(8080, "v2")
	for _, stack := range []string{"web", "other"} {
		w.cli("retire", stack, "--wait")
	}
	w.retired()
}

// TestAHostStartsAUnitAgain lets a live unikernel end by itself, which its stack asks the host to cure.
func TestAHostStartsAUnitAgain(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1", "--restart", "on-failure")
	before := w.live("web").GetInstances()
	w.end(8080, 3)
	exited, err := w.log.Await(w.patient(), "exited", func(s lab.Said) bool { return s.Verb == messages.Exited })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.log.Await(w.patient(), "recovered", func(s lab.Said) bool { return s.Verb == messages.Recovered }); err != nil {
		t.Fatal(err)
	}
	w.answers(8080, "v1")
	if diff := cmp.Diff(before, w.live("web").GetInstances(), protocmp.Transform()); diff != "" {
		t.Errorf("the instance is another one (-before +after):\n%s", diff)
	}
	if out := w.cli("ps"); !strings.Contains(out, "yes, again (1)") {
		t.Errorf("ps does not tell of the restart:\n%s", out)
	}

	w.end(8080, 0) // no failure
	if _, err := w.log.Await(w.patient(), "exited again", func(s lab.Said) bool { return s.Verb == messages.Exited && after(s, exited) }); err != nil {
		t.Fatal(err)
	}
	if out := w.cli("ps"); !strings.Contains(out, "exited with status 0; after that its host does not start it again (restart: on-failure)") {
		t.Errorf("ps does not tell of the end:\n%s", out)
	}
	w.cli("retire", "web", "--wait")
	w.retired()
}

// TestAUnitThatEndsBeforePublicationFailsThoughItWouldStartAgain ends one that is not healthy, and would not be for a minute.
func TestAUnitThatEndsBeforePublicationFailsThoughItWouldStartAgain(t *testing.T) {
	w := newWorld(t)
	w.cli(w.deployArgs("web", 8080, "v1", "--restart", "always", "--health", "tcp:81", "--detach")...)
	unit := w.await("web", 1, messages.Started).Event.GetDeployment().GetUnits()[0]
	w.until(func(context.Context) error {
		c, err := net.DialTimeout("tcp4", net.JoinHostPort(unit.GetInstance().GetAddress(), "80"), time.Second)
		if err != nil {
			return err
		}
		_, err = lab.Ask(c, "/exit?code=3", false)
		return errors.Join(err, c.Close())
	})
	if s := w.await("web", 1, messages.Failed); !strings.Contains(s.Event.GetReason(), "status 3 before it was healthy") {
		t.Errorf("it says %v", s)
	}
	w.await("web", 1, messages.Retired)
	w.retired()
}

func after(s, before lab.Said) bool {
	return s.Event.GetTime().AsTime().After(before.Event.GetTime().AsTime())
}

// end lets the unikernel behind a port end with a status.
func (w *world) end(port uint16, status int) {
	w.t.Helper()
	c := w.dial("tcp", at(port))
	if _, err := lab.Ask(c, fmt.Sprintf("/exit?code=%d", status), false); err != nil {
		w.t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func TestAnEndOfAUnikernelIsSeenAndCured(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	w.end(8080, 3)
	s, err := w.log.Await(w.patient(), "exited", func(s lab.Said) bool { return s.Verb == messages.Exited })
	if err != nil {
		t.Fatal(err)
	}
	if reason := s.Event.GetReason(); s.Unit != "web" || !strings.Contains(reason, "unit web") || !strings.Contains(reason, "status 3") {
		t.Errorf("the end is said as %v", s)
	}
	if out := w.cli("ps"); !strings.Contains(out, "status 3") {
		t.Errorf("ps does not tell of the end:\n%s", out)
	}
	w.cli("renew", "web", "--wait")
	w.answers(8080, "v1")
	w.onlyLive("web", 2)
}
