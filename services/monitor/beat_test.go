package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestPhase(t *testing.T) {
	var got []time.Duration
	for number := range 9 {
		got = append(got, phase(number, 1600*time.Millisecond)/time.Millisecond)
	}
	if diff := cmp.Diff([]time.Duration{0, 800, 400, 1200, 200, 1000, 600, 1400, 100}, got); diff != "" {
		t.Error(diff)
	}
}

func TestFollowing(t *testing.T) {
	for name, c := range map[string]struct{ now, interval, phase, want time.Duration }{
		"the first":                       {0, 10, 0, 10},
		"the first with a phase":          {0, 10, 5, 5},
		"just before":                     {14, 10, 5, 15},
		"at the very time: the one after": {15, 10, 5, 25},
		"many were missed":                {1003, 10, 2, 1012},
	} {
		t.Run(name, func(t *testing.T) {
			if got := following(c.now, c.interval, c.phase); got != c.want {
				t.Errorf("gives %d, want %d", got, c.want)
			}
		})
	}
}

func TestBeatsGatherAndSpread(t *testing.T) {
	b := newBeats()
	b.begin = time.Now().Add(-500 * time.Millisecond)
	every := func(interval time.Duration) *member { return &member{check: &check{interval: interval}} }
	var members []*member
	for range 2*together + 1 {
		members = append(members, every(time.Second))
		b.add(members[len(members)-1])
	}
	b.add(every(2 * time.Second))
	b.remove(members[0])
	b.add(members[0]) // into the place that is free
	const ms = time.Millisecond
	type beat struct {
		At, Next time.Duration
		Due      int
	}
	var got []beat
	for at := 900 * ms; at < 2300*ms; {
		due, next := b.due(at)
		got = append(got, beat{at / ms, next / ms, len(due)})
		at = next
	}
	want := []beat{
		{900, 1000, 0}, {1000, 1250, together}, {1250, 1500, 1}, {1500, 2000, together}, // groups 0, 2, 1
		{2000, 2250, together + 1}, {2250, 2500, 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, m := range members {
		b.remove(m)
	}
	if due, _ := b.due(time.Hour); len(due) != 1 {
		t.Errorf("%d are due, want the one that is left", len(due))
	}
}

func TestKnock(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	full := fullListener(t)
	to := []netip.AddrPort{
		l.Addr().(*net.TCPAddr).AddrPort(), full, netip.AddrPortFrom(loopback(), uint16(unused(t))),
		l.Addr().(*net.TCPAddr).AddrPort(), netip.MustParseAddrPort("255.255.255.255:80"),
	}
	timeouts := []time.Duration{time.Minute, 50 * time.Millisecond, time.Minute, time.Minute, time.Minute}
	got := make([]string, len(to))
	begin := time.Now()
	knock(t.Context(), to, timeouts, func(i int, err error) {
		got[i] += "good"
		if err != nil {
			got[i] = err.Error()
		}
	})
	if diff := cmp.Diff([]string{"good", "no answer", "connection refused", "good", "network is unreachable"}, got); diff != "" {
		t.Error(diff)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v, want a reset, which leaves nothing in the unit", err)
	}
}

func TestAKnockEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	knock(ctx, []netip.AddrPort{fullListener(t)}, []time.Duration{time.Minute}, func(int, error) {})
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// fullListener is an address that answers no SYN, because its queue of connections is full.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback().As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	to := l.Addr().(*net.TCPAddr).AddrPort()
	for {
		conn, err := net.DialTimeout("tcp", to.String(), 100*time.Millisecond)
		if err != nil {
			return to
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}
