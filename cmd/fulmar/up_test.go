package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fulmar/bus"
	"fulmar/bus/bustest"
	"fulmar/firewall/nstest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// upWorld is fulmar up in this process.
type upWorld struct {
	*world
	out, errout lines
	told        strings.Builder // what was read of errout
}

// startUp starts fulmar up on a directory and waits until it says that it is up; it ends with the test.
func startUp(t *testing.T, dir string) *upWorld {
	t.Helper()
	w := &upWorld{world: &world{t: t}, out: make(lines, 100), errout: make(lines, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		ended <- execute(ctx, []string{"up", "--data", dir, "--run-dir", dir, "--cgroup", "fulmar-" + filepath.Base(dir), "--host", "h1", "--listen", "127.0.0.1:0"}, w.out, w.errout)
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	select {
	case said := <-w.out:
		t.Log(said)
		w.url = regexp.MustCompile(`nats://[0-9.:]+`).FindString(said)
		if !strings.Contains(said, "is up on host h1") || !strings.Contains(said, "network good 10.91.0.0/24 on bridge good0") || strings.Contains(said, "on bridge lo") {
			t.Errorf("it says %s", said)
		}
	case status := <-ended:
		close(w.errout)
		for line := range w.errout {
			t.Log(line)
		}
		t.Fatalf("up ended with status %d", status)
	}
	return w
}

// tells waits until a text was written to standard error.
func (w *upWorld) tells(want string) {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for !strings.Contains(w.told.String(), want) {
		select {
		case line := <-w.errout:
			w.told.WriteString(line)
		case <-late:
			w.t.Fatalf("it does not tell %s:\n%s", want, w.told.String())
		}
	}
}

// TestUpGoesOnWithoutWhatIsNoGood has records of networks of which one is good, another nat in its namespace, and then a
// deployment that fails.
func TestUpGoesOnWithoutWhatIsNoGood(t *testing.T) {
	nstest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "fulmar-up") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	server, err := bus.StartServer(filepath.Join(dir, "bus"), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("before", func(t *testing.T) {
		w := &world{t: t, bus: bustest.Open(t, server, bus.Options{Service: "test"})}
		for name, n := range map[string]*fulmarv1.Network{
			"good": {Bridge: "good0", Prefix: "10.91.0.0/24", Gateway: "10.91.0.1"},
			"lo":   {Bridge: "lo", Prefix: "10.92.0.0/30", Gateway: "10.92.0.1"},
		} {
			n.Name, n.Host = name, "h1"
			if err := w.bus.Networks.Put(t.Context(), name, n, 0); err != nil {
				t.Fatal(err)
			}
		}
		w.spoil(messages.NetworkBucket, "spoiled")
	})
	server.Stop()
	other, err := net.Listen("unix", "@fulmar-nat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("good0"); err == nil {
			err = netlink.LinkDel(link)
			if err != nil {
				t.Error(err)
			}
		}
	})
	w := startUp(t, dir)
	w.tells(`level=ERROR msg="network was left out" network=lo err="interface lo of network lo is no bridge but of type `)
	w.tells("fulmar network rm lo removes it")
	w.tells(`level=ERROR msg="network was left out" network=spoiled`)
	w.tells("fulmar network rm spoiled removes it")
	w.tells(`level=WARN msg="another nat acts in this network namespace"`)
	for _, network := range []string{"lo", "spoiled"} {
		if status, _, errout := w.run("network", "rm", network); status != 0 {
			t.Errorf("network rm %s: status %d: %s", network, status, errout)
		}
	}
	if status, _, _ := w.run("deploy", "web", strings.Repeat("0", 64)); status != 1 {
		t.Errorf("status %d", status)
	}
	w.tells(`level=WARN msg="deployment moved" service=builder deployment=web-1 verb=failed reason="`)
}

func TestUpSaysWhatItNeeds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: up says so first")
	}
	t.Setenv("PATH", t.TempDir())
	var errout strings.Builder
	if status := execute(t.Context(), []string{"up", "--data", t.TempDir()}, io.Discard, &errout); status != 1 || !strings.Contains(errout.String(), "apt install iptables") {
		t.Errorf("status %d: %s", status, errout.String())
	}
}

func TestABusThatOthersReachIsPointedOut(t *testing.T) {
	for listen, want := range map[string]bool{
		"127.0.0.1:4222": false, "[::1]:4222": false, "localhost:4222": false, "127.8.0.1:1": false,
		"0.0.0.0:4222": true, ":4222": true, "[::]:4222": true, "192.0.2.1:4222": true, "bus.example:4222": true, "nonsense": false,
	} {
		if got := exposed(listen) != ""; got != want {
			t.Errorf("of %s: %v", listen, got)
		}
	}
	var errout strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	said := make(lines, 1)
	ended := make(chan int)
	go func() {
		ended <- execute(ctx, []string{"bus", "--data", t.TempDir(), "--listen", "0.0.0.0:0"}, said, &errout)
	}()
	<-said
	cancel()
	if status := <-ended; status != 0 || !strings.Contains(errout.String(), fmt.Sprintf("listens on %s: whoever reaches it", "0.0.0.0:0")) {
		t.Errorf("status %d: %s", status, errout.String())
	}
}
