package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/conntrack"
	"fulmar/firewall"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// hands gives a nat whose handlers the test calls itself, as a worker that dies before it has said what it did.
func (w *world) hands(t *testing.T) *Service {
	t.Helper()
	s, err := New(bustest.Open(t, w.server, bus.Options{Service: "nat", Host: testHost}), w.config(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.heads.Run, s.networks.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		s.kernel.Close()
	})
	return s
}

// silent checks that nothing is said for a while.
func (w *world) silent(t *testing.T) {
	t.Helper()
	select {
	case e := <-w.events:
		t.Errorf("%s of %s was said (%s)", e.GetVerb(), e.GetDeployment().GetStack(), e.GetReason())
	case <-time.After(200 * time.Millisecond):
	}
}

func TestACrashBetweenTheSwitchAndItsEventEndsInOneOfEach(t *testing.T) {
	eachBackend(t, aCrashBetweenTheSwitchAndItsEventEndsInOneOfEach)
}

func aCrashBetweenTheSwitchAndItsEventEndsInOneOfEach(t *testing.T, w *world) {
	i, _ := w.instance(t, "web", "web", 1, 2)
	d := w.accept(t, web(1, i))
	dead := w.hands(t)
	for range 2 { // delivered twice, and died twice
		verb, err := dead.publish(t.Context(), &fulmarv1.Event{Deployment: d})
		if verb != messages.Published || err != nil {
			t.Fatalf("%s, %v", verb, err)
		}
	}
	before := rulesOf(t)
	w.healthy(t, d)
	w.nat(t)
	w.expect(t, messages.Published, web(1, i))
	w.silent(t)
	if after := rulesOf(t); after != before || strings.Count(after, map[firewall.Backend]string{firewall.IPTables: "-j FULMAR-1\n", firewall.NFTables: ` . 53 comment "web-1"`}[w.backend]) != map[firewall.Backend]int{firewall.IPTables: 3, firewall.NFTables: 1}[w.backend] {
		t.Errorf("the rules before the crash and after:\n%s\n%s", before, after)
	}
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", i.GetName())
}

func TestACrashBetweenTheHeadAndTheSwitchIsMadeUpForAtStart(t *testing.T) {
	eachBackend(t, aCrashBetweenTheHeadAndTheSwitchIsMadeUpForAtStart)
}

func aCrashBetweenTheHeadAndTheSwitchIsMadeUpForAtStart(t *testing.T, w *world) {
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	stop := w.nat(t)
	w.deploy(t, web(1, first))
	flow, err := dial(w.client.Do, "udp4", "192.0.2.1:8053")
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if got, err := ask(flow); got != first.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	stop()
	d := w.accept(t, web(2, second))
	if _, err := w.bus.Heads.Edit(t.Context(), "web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Publish(h, 2, time.Now())
	}); err != nil {
		t.Fatal(err)
	}
	w.nat(t)
	until(t, func() error { return redirects(2) })
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", second.GetName())
	if got, err := ask(flow); got != second.GetName() || err != nil {
		t.Errorf("the UDP flow: %q, %v", got, err)
	}
	w.healthy(t, d)
	w.expect(t, messages.Published, web(2, second))
	w.silent(t)
}

func TestACrashBetweenTheSwitchAndTheFlushIsMadeUpForByTheNextDelivery(t *testing.T) {
	eachBackend(t, aCrashBetweenTheSwitchAndTheFlushIsMadeUpForByTheNextDelivery)
}

func aCrashBetweenTheSwitchAndTheFlushIsMadeUpForByTheNextDelivery(t *testing.T, w *world) {
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	stop := w.nat(t)
	w.deploy(t, web(1, first))
	w.deploy(t, web(2, second))
	stop()
	// A flow that is bound to the old instance, as it would be without the flush.
	command(t, "nft", "add table ip bend; add chain ip bend pre { type nat hook prerouting priority -120; }; add rule ip bend pre udp dport 8053 dnat to "+first.GetAddress()+":53")
	flow, err := dial(w.client.Do, "udp4", "192.0.2.1:8053")
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	if got, err := ask(flow); got != first.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	command(t, "nft", "delete table ip bend")
	again := w.hands(t)
	if verb, err := again.publish(t.Context(), &fulmarv1.Event{Deployment: &fulmarv1.Deployment{Stack: "web", Generation: 2, Network: lan()}}); verb != messages.Published || err != nil {
		t.Fatalf("%s, %v", verb, err)
	}
	if got, err := ask(flow); got != second.GetName() || err != nil {
		t.Errorf("the UDP flow: %q, %v", got, err)
	}
}

func TestOneActsAndTheOtherTakesOver(t *testing.T) { eachBackend(t, oneActsAndTheOtherTakesOver) }

func oneActsAndTheOtherTakesOver(t *testing.T, w *world) {
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	stopA := w.nat(t)
	w.deploy(t, web(1, first))
	stopB := w.nat(t)
	if l, err := net.Listen("unix", lockName); err == nil {
		_ = l.Close()
		t.Error("nobody holds the lock of the network namespace")
	}
	w.flushEverything(t) // both would restore it
	until(t, func() error {
		_, err := try(w.client.Do, "tcp4", "192.0.2.1:8080")
		return err
	})
	stopA()
	w.deploy(t, web(2, second))
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", second.GetName())
	until(t, func() error { return redirects(2) })
	w.silent(t)
	stopB()
}

func TestAStandbyCanBeStopped(t *testing.T) { eachBackend(t, aStandbyCanBeStopped) }

func aStandbyCanBeStopped(t *testing.T, w *world) {
	w.nat(t)
	w.nat(t)()
}

func TestWhatEndedWhileNobodyWasThereIsCleanedUp(t *testing.T) {
	eachBackend(t, whatEndedWhileNobodyWasThereIsCleanedUp)
}

func whatEndedWhileNobodyWasThereIsCleanedUp(t *testing.T, w *world) {
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	stop := w.nat(t)
	w.deploy(t, web(1, first))
	kept, err := dial(w.client.Do, "tcp4", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if got, err := ask(kept); got != first.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	w.deploy(t, web(2, second))
	stop()
	w.end(t, "web", 1)
	w.nat(t)
	until(t, func() error {
		if rules := rulesOf(t); strings.Contains(rules, "web-1") || strings.Contains(rules, "FULMAR-1 ") {
			return fmt.Errorf("rules are left:\n%s", rules)
		}
		return nil
	})
	until(t, func() error {
		if got, err := ask(kept); err == nil {
			return fmt.Errorf("a connection to an instance that is gone was answered by %s", got)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it hangs: %v", err)
		}
		return nil
	})
	expectWho(t, w.client.Do, "tcp4", "192.0.2.1:8080", second.GetName())
}

func TestAnAddressThatHasANewHolderKeepsItsConnections(t *testing.T) {
	eachBackend(t, anAddressThatHasANewHolderKeepsItsConnections)
}

func anAddressThatHasANewHolderKeepsItsConnections(t *testing.T, w *world) {
	w.nat(t)
	i, _ := w.instance(t, "web", "web", 2, 2)
	w.deploy(t, web(2, i))
	kept, err := dial(w.client.Do, "tcp4", "192.0.2.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if got, err := ask(kept); got != i.GetName() || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	late := &fulmarv1.Deployment{Stack: "old", Generation: 1, Network: lan(), Dying: []*fulmarv1.Instance{
		{Unit: "old", Name: "old.old.1", Network: "lan", Address: i.GetAddress()},
	}}
	if _, err := w.hands(t).stopped(t.Context(), &fulmarv1.Event{Deployment: late}); err != nil {
		t.Fatal(err)
	}
	// Asking on the connection would make a new entry.
	if open, err := conntrack.Established(netip.MustParseAddr(i.GetAddress())); err != nil || open[netip.MustParseAddr(i.GetAddress())] == 0 {
		t.Errorf("established: %v, %v", open, err)
	}
}

func TestALateOneIsLeftToTheKeeperOfTheDeadlines(t *testing.T) {
	eachBackend(t, aLateOneIsLeftToTheKeeperOfTheDeadlines)
}

func aLateOneIsLeftToTheKeeperOfTheDeadlines(t *testing.T, w *world) {
	i, _ := w.instance(t, "web", "web", 1, 2)
	d := web(1, i)
	d.deadline = time.Now().Add(-time.Second)
	event := &fulmarv1.Event{Deployment: w.accept(t, d)}
	s := w.hands(t)
	var refusal *messages.Refusal
	if verb, err := s.publish(t.Context(), event); verb != "" || err == nil || errors.As(err, &refusal) {
		t.Errorf("%s, %v", verb, err)
	}
	if _, err := w.bus.Heads.Edit(t.Context(), "web", func(h *fulmarv1.Head) (*fulmarv1.Head, error) {
		return messages.Expire(h, 1, time.Now(), "too late")
	}); err != nil {
		t.Fatal(err)
	}
	if verb, err := s.publish(t.Context(), event); verb != "" || err != nil {
		t.Errorf("once condemned: %s, %v", verb, err)
	}
	if rules := rulesOf(t); rules != "" {
		t.Errorf("rules:\n%s", rules)
	}
}

func TestEverythingFlushedWhileTheBusIsDownIsRestored(t *testing.T) {
	eachBackend(t, everythingFlushedWhileTheBusIsDownIsRestored)
}

func everythingFlushedWhileTheBusIsDownIsRestored(t *testing.T, w *world) {
	w.nat(t)
	first, _ := w.instance(t, "web", "web", 1, 2)
	second, _ := w.instance(t, "web", "web", 2, 3)
	w.deploy(t, web(1, first))
	w.deploy(t, web(2, second))
	w.server.Stop()
	guard := map[firewall.Backend]string{firewall.IPTables: "-s 10.79.0.2/32 -j FULMAR-1\n", firewall.NFTables: `10.79.0.2 . tcp . 80 comment "web-1"`}[w.backend]
	for range 3 { // each look fails, and none may put the next one off for long
		w.flushEverything(t)
		until(t, func() error {
			got, err := try(w.client.Do, "tcp4", "192.0.2.1:8080")
			if err == nil && got != second.GetName() {
				t.Fatalf("answered by %q", got)
			}
			return err
		})
		until(t, func() error {
			if rules := rulesOf(t); !strings.Contains(rules, guard) {
				return fmt.Errorf("missing in\n%s", rules)
			}
			return nil
		})
	}
}

func TestAHostWithoutNetworksIsNotTouched(t *testing.T) {
	eachBackend(t, aHostWithoutNetworksIsNotTouched)
}

func aHostWithoutNetworksIsNotTouched(t *testing.T, w *world) {
	if err := w.bus.Networks.Delete(t.Context(), "lan", 1); err != nil {
		t.Fatal(err)
	}
	w.nat(t)
	w.silent(t)
	if rules := rulesOf(t); rules != "" {
		t.Errorf("rules:\n%s", rules)
	}
	if err := w.bus.Networks.Put(t.Context(), "lan", lan(), 0); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		if rules := rulesOf(t); !strings.Contains(rules, "br-nat") {
			return fmt.Errorf("rules:\n%s", rules)
		}
		return nil
	})
}
