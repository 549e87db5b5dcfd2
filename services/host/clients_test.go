package host_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

func TestBadClientsAreToldAndOthersServed(t *testing.T) {
	d := start(t, config(t))
	header := albatross.Header{Sequence: 42, Name: name(t, "a:b")}
	good, err := albatross.Marshal(albatross.Wire{Header: header, Payload: albatross.UnikernelInfo{}})
	if err != nil {
		t.Fatal(err)
	}
	unknown := append([]byte(nil), good...)
	unknown[len(unknown)-4] = 0xbe // a command of unikernels that nobody knows
	frame := func(message []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
	}
	for what, c := range map[string]struct {
		bytes  []byte
		header albatross.Header
		want   string
	}{
		"a frame of 4 GB":      {append([]byte{0xff, 0xff, 0xff, 0xff}, good...), header, "frame too large"},
		"no DER":               {frame([]byte("GET / HTTP/1.1\r\n")), albatross.Header{}, "malformed"},
		"an unknown command":   {frame(unknown), header, "malformed"},
		"bytes after the end":  {frame(append(slices.Clip(good), 0)), header, "malformed"},
		"an empty frame":       {frame(nil), albatross.Header{}, "malformed"},
		"a reply":              {frame(mustMarshal(t, albatross.Wire{Header: header, Payload: albatross.Empty{}})), header, "this is not a command"},
		"a console subscriber": {frame(mustMarshal(t, albatross.Wire{Header: header, Payload: albatross.ConsoleSubscribe{}})), header, "unknown command"},
	} {
		t.Run(what, func(t *testing.T) {
			conn := dial(t, d.cfg, albatross.VMMDSocket)
			if _, err := conn.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			reply := receive(t, conn)
			failure, ok := reply.Payload.(albatross.Failure)
			if !ok || !strings.Contains(string(failure), c.want) || reply.Header != c.header {
				t.Errorf("reply is %+v, want %+v and %q", reply, c.header, c.want)
			}
			if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("after the reply: %q, %v", rest, err)
			}
		})
	}
	half := dial(t, d.cfg, albatross.VMMDSocket) // and never more
	if _, err := half.Write(frame(good)[:10]); err != nil {
		t.Fatal(err)
	}
	var idle []net.Conn
	for range 600 { // more than there may be
		idle = append(idle, dial(t, d.cfg, albatross.VMMDSocket))
	}
	if _, err := d.Info(t.Context(), albatross.Name{}); err != nil {
		t.Errorf("info beside clients that say nothing: %v", err)
	}
	if _, err := half.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("the oldest silent client was not closed: %v", err)
	}
	for _, c := range idle {
		_ = c.Close()
	}
}

func mustMarshal(t testing.TB, w albatross.Wire) []byte {
	t.Helper()
	der, err := albatross.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestManyCreatesAtOnce(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg)
	image := hosttest.Guest(t, 1)
	const count = 50
	var clients sync.WaitGroup
	for i := range count {
		clients.Go(func() {
			if err := d.Create(t.Context(), name(t, fmt.Sprintf("many:u%d", i)), unikernel(image, 1, "wait")); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	list, err := d.Info(t.Context(), name(t, "many:"))
	if err != nil || len(list) != count || len(taps(t)) != count {
		t.Errorf("%d unikernels, %d taps, %v", len(list), len(taps(t)), err)
	}
	users := make(map[int]bool)
	for _, uid := range processes(t) {
		if uid >= cfg.UIDBase && uid < cfg.UIDBase+count {
			users[uid] = true
		}
	}
	if len(users) != count {
		t.Errorf("%d users, want %d", len(users), count)
	}
	for _, r := range list {
		clients.Go(func() {
			if err := d.Destroy(t.Context(), r.Name); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	checkNothingLeft(t, cfg)
}

func TestOfManyCreatesOfOneNameOneWins(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg)
	image := hosttest.Guest(t, 1)
	n := name(t, ":one")
	var clients sync.WaitGroup
	won := make(chan struct{}, 20)
	for range cap(won) {
		clients.Go(func() {
			switch err := d.Create(t.Context(), n, unikernel(image, 1, "wait")); {
			case err == nil:
				won <- struct{}{}
			case !errors.Is(err, albatross.ErrExists):
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if len(won) != 1 || len(taps(t)) != 1 {
		t.Errorf("%d creates won, taps %v", len(won), taps(t))
	}
	for range cap(won) {
		clients.Go(func() {
			if err := d.ForceCreate(t.Context(), n, unikernel(image, 1, "wait")); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	if len(taps(t)) != 1 {
		t.Errorf("taps %v", taps(t))
	}
	if err := d.Destroy(t.Context(), n); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, cfg)
}

// TestASecondDaemonThatSharesAnythingDoesNotStart begins daemons that would take the first one's consoles away, or kill what
// runs in its control group.
func TestASecondDaemonThatSharesAnythingDoesNotStart(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg).destroyAll(t)
	n := name(t, ":x")
	second := func(other host.Config) error {
		_, err := host.New(other, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		return err
	}
	alike := host.Config{StateDir: t.TempDir(), RunDir: t.TempDir(), Cgroup: cfg.Cgroup, UIDBase: cfg.UIDBase}
	if err := second(alike); err == nil || !strings.Contains(err.Error(), "control group "+cfg.Cgroup+" is in use by another host") { // as yet nothing is in it
		t.Errorf("a second daemon beside one that runs nothing: %v", err)
	}
	d.create(t, n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	for what, change := range map[string]func(*host.Config){
		"everything":        func(*host.Config) {},
		"the run directory": func(c *host.Config) { c.StateDir, c.Cgroup = t.TempDir(), c.Cgroup+"-2" },
		"the control group": func(c *host.Config) { c.StateDir, c.RunDir = t.TempDir(), t.TempDir() },
	} {
		other := cfg
		change(&other)
		if err := second(other); err == nil || !strings.Contains(err.Error(), "in use by another host") {
			t.Errorf("a second daemon that shares %s: %v", what, err)
		}
		if list, err := d.Info(t.Context(), n); err != nil || len(list) != 1 {
			t.Errorf("after a second daemon that shares %s: %v, %v", what, list, err)
		}
		if _, err := os.Stat(cfg.RunDir + "/fifo/:x"); err != nil {
			t.Errorf("a second daemon that shares %s took something away: %v", what, err)
		}
	}
}

func TestConsole(t *testing.T) {
	d := start(t, config(t)).destroyAll(t)
	image := hosttest.Guest(t, 0)
	t.Run("a subscriber may come first", func(t *testing.T) {
		n := name(t, ":early")
		conn := dial(t, d.cfg, albatross.ConsoleSocket)
		subscribe := albatross.Wire{Header: albatross.Header{Sequence: 9, Name: n}, Payload: albatross.ConsoleSubscribe{Count: 5}}
		if err := albatross.WriteFrame(conn, mustMarshal(t, subscribe)); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, conn); got.Payload != albatross.Text("waiting for VM") || got.Sequence != 9 {
			t.Errorf("reply %+v", got)
		}
		d.create(t, n, unikernel(image, 0, "wait"))
		got := receive(t, conn)
		if line, ok := got.Payload.(albatross.ConsoleData); !ok || line.Line != "up" || got.Sequence != 0 || got.Name != n || time.Since(line.Time) > time.Minute {
			t.Errorf("first line %+v", got)
		}
		if _, err := conn.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a subscriber that speaks: %v", err)
		}
	})
	t.Run("long lines are cut and empty ones dropped", func(t *testing.T) {
		n := name(t, ":long")
		d.create(t, n, unikernel(image, 0, "long", "2000"))
		lines := d.await(t, n, is("end"))
		if len(lines) != 2 || lines[0] != strings.Repeat("x", 512) {
			t.Errorf("lines are %d, the first of %d bytes", len(lines), len(lines[0]))
		}
	})
	t.Run("the past is selected by count and by time, the ring is bounded", func(t *testing.T) {
		n := name(t, ":lines")
		d.create(t, n, unikernel(image, 0, "lines", "3000"))
		lines := d.await(t, n, is("line 2999"))
		ring := d.past(t, n, albatross.ConsoleSubscribe{Count: 1 << 40}, "line 2999")
		if len(ring) != 1024 || ring[1023].Line != "line 2999" || ring[0].Line != "line 1976" {
			t.Errorf("ring of %d lines from %+v; the subscriber saw %d", len(ring), ring[0], len(lines))
		}
		if got := d.past(t, n, albatross.ConsoleSubscribe{Count: 2}, "line 2999"); len(got) != 2 || got[1].Line != "line 2999" {
			t.Errorf("the last two are %+v", got)
		}
		future := time.Now().Add(time.Hour)
		if got := d.past(t, n, albatross.ConsoleSubscribe{Since: &future}, ""); len(got) != 0 {
			t.Errorf("of the future: %+v", got)
		}
		since := ring[500].Time
		got := d.past(t, n, albatross.ConsoleSubscribe{Since: &since}, "line 2999")
		if len(got) == 0 || len(got) > 1024 || got[0].Time.Before(since) {
			t.Errorf("since %v: %d lines from %+v", since, len(got), got[0])
		}
	})
	t.Run("of six subscribers the first is dropped", func(t *testing.T) {
		n := name(t, ":six")
		var conns []net.Conn
		for range 6 {
			conn := dial(t, d.cfg, albatross.ConsoleSocket)
			if err := albatross.WriteFrame(conn, mustMarshal(t, albatross.Wire{Header: albatross.Header{Name: n}, Payload: albatross.ConsoleSubscribe{}})); err != nil {
				t.Fatal(err)
			}
			receive(t, conn)
			conns = append(conns, conn)
		}
		d.create(t, n, unikernel(image, 0, "wait"))
		for i, conn := range conns {
			if i == 0 {
				if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
					t.Errorf("the first got %q, %v", rest, err)
				}
				continue
			}
			if got, ok := receive(t, conn).Payload.(albatross.ConsoleData); !ok || got.Line != "up" {
				t.Errorf("subscriber %d got %+v", i, got)
			}
		}
	})
	t.Run("a path is no unikernel", func(t *testing.T) {
		reply := ask(t, d.cfg, albatross.ConsoleSocket, albatross.Wire{Header: albatross.Header{Name: name(t, "foo:")}, Payload: albatross.ConsoleSubscribe{}})
		if reply.Payload != albatross.Failure("path used instead of name") {
			t.Errorf("reply %+v", reply)
		}
	})
	t.Run("inactive ones are listed, the last first", func(t *testing.T) {
		for _, n := range []string{"in:first", "in:second"} {
			d.create(t, name(t, n), unikernel(image, 0, "exit", "0"))
			d.await(t, name(t, n), ended)
		}
		reply := ask(t, d.cfg, albatross.ConsoleSocket, albatross.Wire{Header: albatross.Header{Name: name(t, "in:")}, Payload: albatross.ConsoleListInactive{}})
		if got := fmt.Sprint(reply.Payload); got != "[:second :first]" {
			t.Errorf("inactive: %s", got)
		}
	})
}

// past reads the lines of the past that a subscription begins with, up to a line that is known to be the last; of an empty
// one it sees that none come.
func (d *daemon) past(t testing.TB, n albatross.Name, c albatross.ConsoleSubscribe, last string) (lines []albatross.ConsoleData) {
	t.Helper()
	conn := dial(t, d.cfg, albatross.ConsoleSocket)
	defer func() { _ = conn.Close() }()
	if err := albatross.WriteFrame(conn, mustMarshal(t, albatross.Wire{Header: albatross.Header{Name: n}, Payload: c})); err != nil {
		t.Fatal(err)
	}
	receive(t, conn)
	limit := 20 * time.Second
	if last == "" {
		limit = 200 * time.Millisecond
	}
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := albatross.ReadFrame(conn, 1<<20)
		if last == "" && errors.Is(err, os.ErrDeadlineExceeded) {
			return lines
		}
		if err != nil {
			t.Fatalf("after %d lines: %v", len(lines), err)
		}
		w, err := albatross.Unmarshal(frame)
		if err != nil {
			t.Fatal(err)
		}
		line := w.Payload.(albatross.ConsoleData)
		if lines = append(lines, line); line.Line == last {
			return lines
		}
	}
}

func TestAFloodOfLinesHurtsNobody(t *testing.T) {
	d := start(t, config(t)).destroyAll(t)
	image := hosttest.Guest(t, 0)
	flood := name(t, ":flood")
	d.create(t, flood, unikernel(image, 0, "flood"))
	slow := dial(t, d.cfg, albatross.ConsoleSocket) // and does not read what it is sent
	if err := albatross.WriteFrame(slow, mustMarshal(t, albatross.Wire{Header: albatross.Header{Name: flood}, Payload: albatross.ConsoleSubscribe{}})); err != nil {
		t.Fatal(err)
	}
	count := 0
	begin := time.Now()
	d.await(t, flood, func(string) bool { count++; return count > 5000 && time.Since(begin) > 1500*time.Millisecond })
	if took := time.Since(begin); float64(count) > 20000+40000*took.Seconds() { // 1 MB a second, and what the FIFO and the ring hold
		t.Errorf("%d lines in %v", count, took)
	}
	for i := range 20 {
		n := name(t, fmt.Sprintf(":beside%d", i))
		begin := time.Now()
		d.create(t, n, unikernel(image, 0, "wait"))
		d.await(t, n, is("up"))
		if dur := time.Since(begin); dur > 15*time.Second {
			t.Errorf("a create beside the flood took %v", dur)
		}
	}
	raw, err := slow.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	cerr := raw.Control(func(fd uintptr) {
		for n, err = 0, unix.EINTR; errors.Is(err, unix.EINTR); {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 20000)
		}
	})
	if err != nil || cerr != nil || n != 1 {
		t.Errorf("a subscriber that takes nothing was not dropped: %v, %v", err, cerr)
	}
}
