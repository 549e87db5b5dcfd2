package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/e2e/lab"
	"fulmar/messages"
)

func TestRulesComeBackByThemselves(t *testing.T) {
	w := newWorld(t)
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
	w := newLab(t)
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
	up, err := w.StartIn("mount --bind "+boot+" /proc/sys/kernel/random/boot_id", "fulmar", " is up ", w.UpArgs()...)
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
	after := w.snapshot()
	if diff := cmp.Diff([]any{before.Rules, before.Held, before.Heads}, []any{after.Rules, after.Held, after.Heads}); diff != "" {
		t.Errorf("what is held (-before the boot +after):\n%s", diff)
	}
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

func TestAnEndOfAUnikernelIsSeenAndCured(t *testing.T) {
	w := newWorld(t)
	w.deploy("web", 8080, "v1")
	c := w.dial("tcp", at(8080))
	if _, err := lab.Ask(c, "/exit?code=3", false); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
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
