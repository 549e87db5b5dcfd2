package hello_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestAnswersThroughGateway(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	l.run(ctx, "ip", "link", "set", "lo", "up")
	l.run(ctx, "ip", "address", "add", "192.0.2.1/32", "dev", "lo")
	l.run(ctx, "sysctl", "-q", "-w", "net.ipv4.conf."+tapName+".arp_ignore=1") // it is no neighbour
	l.run(ctx, "ping", "-c", "1", "-W", "5", "-I", "192.0.2.1", guestIP)
	err := l.do(func() error {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}
		conn, err := dialer.DialContext(ctx, "tcp", guestAddr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

// A bridge may change its MAC address at any time, without a word.
func TestFollowsChangedMAC(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	r := bufio.NewReader(conn)
	for i := range 3 {
		mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
		err := l.do(func() error {
			tap, err := netlink.LinkByName(tapName)
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(tap, mac)
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		fmt.Fprint(conn, request)
		if status, _, err := readAnswer(r); status != 200 {
			t.Fatal(status, err)
		}
		if wait := time.Since(start); wait > 5*time.Second {
			t.Errorf("the guest took %v to notice", wait)
		}
	}
}

// One that says nothing by ARP either is noticed by where its packets come from.
func TestAsksAgainWhenMACDiffers(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	// Long before the guest would ask by itself.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p.mac = net.HardwareAddr{2, 0, 0, 0, 2, 0}
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer})
}

func TestAnnouncesItself(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.run(ctx, "sysctl", "-q", "-w", "net.ipv4.conf."+tapName+".arp_accept=1")
	// Without a gateway there is nobody whom it would ask.
	l.launch("--ipv4=" + guestIP + "/24").waitReady(ctx)
	if got := l.run(ctx, "ip", "neighbour", "show", guestIP); !strings.Contains(got, guestMAC.String()) {
		t.Errorf("neighbours: %q, want %s", got, guestMAC)
	}
}

func TestPacketLoss(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	for _, chain := range []string{"INPUT", "OUTPUT"} {
		l.run(ctx, "iptables", "-A", chain, "-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP")
	}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if err := lossyClient(ctx, l); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// lossyClient makes a few connections with a few requests each, also pipelined.
func lossyClient(ctx context.Context, l *lab) error {
	for range 2 {
		conn, err := l.dial(ctx, "tcp", guestAddr)
		if err != nil {
			return err
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for range 5 {
			fmt.Fprint(conn, strings.Repeat(request, 5))
			for range 5 {
				if status, body, err := readAnswer(r); status != 200 || body != "hello\n" {
					return fmt.Errorf("%d %q %w", status, body, err)
				}
			}
		}
	}
	return nil
}

// usage is the CPU time, in ticks, and the number of wake-ups of a process.
func usage(t testing.TB, pid int) (ticks, switches int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// The name may hold anything, so the fields are counted behind it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s*(\d+)$`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no switches in %s", status)
	}
	if switches, err = strconv.Atoi(string(match[1])); err != nil {
		t.Fatal(err)
	}
	return ticks, switches
}

func TestIdle(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	g := l.start(ctx)
	conns := make([]net.Conn, 100)
	for i := range conns {
		conns[i] = l.connect(ctx, "tcp", guestAddr)
		fmt.Fprint(conns[i], request)
		if status, _, err := readAnswer(bufio.NewReader(conns[i])); status != 200 {
			t.Fatal(status, err)
		}
	}
	g.expectIdle()
	l.run(ctx, "ip", "link", "set", tapName, "down")
	g.expectIdle()
}

// expectIdle sees that the guest does nearly nothing for a second.
func (g *guest) expectIdle() {
	g.t.Helper()
	ticks, switches := usage(g.t, g.cmd.Process.Pid)
	select {
	case <-time.After(time.Second):
	case <-g.ended:
		g.t.Fatal("guest ended")
	}
	ticksAfter, switchesAfter := usage(g.t, g.cmd.Process.Pid)
	// The second announcement, timers of the last answers, and the kernel's own ARP are all that may wake it.
	if ticksAfter-ticks > 1 || switchesAfter-switches > 10 {
		g.t.Errorf("idle for a second, used %d ticks and woke %d times", ticksAfter-ticks, switchesAfter-switches)
	}
}

func TestEndsWithoutItsDevice(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	g := l.start(ctx)
	l.run(ctx, "ip", "link", "delete", tapName)
	if status := g.exitStatus(ctx); status != 255 {
		t.Errorf("exit status %d, want 255", status)
	}
	if said := g.console.String(); !strings.HasSuffix(said, "\nhello: the network device is gone\n") {
		t.Errorf("console: %s", said)
	}
}

func BenchmarkFirstAnswer(b *testing.B)   { newLab(b).benchmarkFirstAnswer(b) }
func BenchmarkKeepAlive(b *testing.B)     { newLab(b).benchmarkKeepAlive(b) }
func BenchmarkNewConnection(b *testing.B) { newLab(b).benchmarkNewConnection(b) }

// What it takes from the start of the process to the first answer.
func (l *lab) benchmarkFirstAnswer(b *testing.B) {
	ctx := testContext(b)
	for b.Loop() {
		g := l.launch("--ipv4=" + guestIP + "/24")
		if err := l.do(func() error { return oneRequest(ctx, request, "hello\n") }); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.kill()
		b.StartTimer()
	}
}

// What a kept connection carries, one request after the other.
func (l *lab) benchmarkKeepAlive(b *testing.B) {
	ctx := testContext(b)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	r := bufio.NewReader(conn)
	for b.Loop() {
		fmt.Fprint(conn, request)
		if status, _, err := readAnswer(r); status != 200 {
			b.Fatal(status, err)
		}
	}
}

func (l *lab) benchmarkNewConnection(b *testing.B) {
	ctx := testContext(b)
	l.start(ctx)
	err := l.do(func() error {
		for b.Loop() {
			if err := oneRequest(ctx, request, "hello\n"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
