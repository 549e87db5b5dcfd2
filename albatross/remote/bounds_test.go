package remote

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fulmar/albatross"
)

// TestServerBoundsWhatFollowsACommand sends streams that nobody should, and asks in between whether others are served.
func TestServerBoundsWhatFollowsACommand(t *testing.T) {
	create := extension(t, albatross.UnikernelCreate{Config: albatross.Config{Args: albatross.Args{CPUs: 1}}})
	set := extension(t, albatross.BlockSet{})
	frames := func(sizes ...int) string {
		var b bytes.Buffer
		for _, n := range sizes {
			_ = albatross.WriteFrame(&b, bytes.Repeat([]byte("x"), n))
		}
		return b.String()
	}
	tests := map[string]struct {
		command   []byte
		say, want string
		creates   int // that reach the daemon
	}{
		"a frame of 4 GB in an image":     {create, "\xff\xff\xff\xffx", "frame too large", 0},
		"a frame of 2 MB in an image":     {create, "\x00\x20\x00\x00", "frame too large", 0},
		"an image that is too large":      {create, frames(1<<20, 1<<20, 1<<20, 0), "image too large", 0},
		"an image that is just right":     {create, frames(1<<20, 1<<20, 0), "", 1},
		"no image at all":                 {create, frames(0), "no image", 1},
		"a frame of 4 GB in a block":      {set, "\xff\xff\xff\xffx", "frame too large", 0},
		"a block, and one too large then": {set, frames(5) + "\x7f\x00\x00\x00", "frame too large", 0},
	}
	creates := func(l *lab) (n int) {
		for _, w := range l.daemon.commands() {
			if is[albatross.UnikernelCreate](w.Payload.(albatross.Command)) {
				n++
			}
		}
		return n
	}
	l := newLab(t, Config{MaxImage: 2 << 20}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
		if set, ok := m.(albatross.BlockSet); ok && readBlock(conn, set) != nil {
			return
		}
		created(conn, h, m)
	})
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			before := creates(l)
			heard, err := l.raw(forge(t, l.root, forged{cn: "web", extension: tt.command}), []byte(tt.say))
			if err != nil {
				t.Error(err)
			}
			if tt.want == "" {
				if len(heard) != 1 || heard[0].Payload != albatross.Text("done") {
					t.Errorf("heard %v", heard)
				}
			} else {
				checkFailure(t, heard, tt.want)
			}
			if n := creates(l) - before; n != tt.creates {
				t.Errorf("the daemon was asked for %d creates, want %d", n, tt.creates)
			}
		})
	}
	l.stop()
	if used := l.server.images.Load(); used != 0 {
		t.Errorf("%d bytes of the budget are still taken", used)
	}
}

// TestServerForgetsWhoLeaves ends connections in the middle of what they have to say.
func TestServerForgetsWhoLeaves(t *testing.T) {
	done := make(chan error, 1)
	l := newLab(t, Config{}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
		if set, ok := m.(albatross.BlockSet); ok {
			done <- readBlock(conn, set)
		}
	})
	for what, m := range map[string]albatross.Command{"a create": albatross.UnikernelCreate{}, "a block": albatross.BlockSet{}} {
		t.Run("half a frame of "+what, func(t *testing.T) {
			conn, err := l.endpoint(l.root).Dial(testContext(t), forge(t, l.root, forged{cn: "web", extension: extension(t, m)}))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("\x00\x00\x00\x10half")); err != nil {
				t.Error(err)
			}
			_ = conn.Close()
			if _, ok := m.(albatross.BlockSet); ok {
				if err := <-done; err == nil {
					t.Error("the daemon was told a whole block")
				}
			}
		})
	}
	for _, w := range l.daemon.commands() {
		if _, ok := w.Payload.(albatross.UnikernelCreate); ok {
			t.Error("half an image was created")
		}
	}
}

// TestServerMakesRoom fills the server with clients that say nothing; one with a certificate is served all the same.
func TestServerMakesRoom(t *testing.T) {
	l := newLab(t, Config{Connections: 4}, created)
	for range 12 {
		conn, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	heard, err := l.raw(forge(t, l.root, forged{cn: ".", extension: extension(t, albatross.UnikernelInfo{})}), nil)
	if err != nil || len(heard) != 1 {
		t.Errorf("heard %v, %v", heard, err)
	}
}

// TestOnePathCannotTakeAll subscribes as often as one path may, and once more; another path is served.
func TestOnePathCannotTakeAll(t *testing.T) {
	l := newLab(t, Config{Connections: 8}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
		_ = albatross.WriteReply(conn, h, albatross.Text("subscribed"))
		_, _ = conn.Read(make([]byte, 1))
	})
	policy := extension(t, albatross.PolicyAdd{Policy: albatross.Policy{Unikernels: 1}})
	subscribe := func(path ...string) (net.Conn, albatross.Payload) {
		var chain []forged
		for _, label := range path {
			chain = append(chain, forged{cn: label, ca: true, extension: policy})
		}
		chain = append(chain, forged{cn: "web", extension: extension(t, albatross.ConsoleSubscribe{})})
		conn, err := l.endpoint(l.root).Dial(testContext(t), forge(t, l.root, chain...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		frame, err := albatross.ReadFrame(conn, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		w, err := albatross.Unmarshal(frame)
		if err != nil {
			t.Fatal(err)
		}
		return conn, w.Payload
	}
	first, got := subscribe("a")
	if got != albatross.Text("subscribed") {
		t.Fatalf("the first: %v", got)
	}
	if _, got := subscribe("a"); got != albatross.Text("subscribed") {
		t.Fatalf("the second: %v", got)
	}
	if _, got := subscribe("a"); got != albatross.Failure(ErrBusy.Error()) {
		t.Errorf("the third of one path: %v", got)
	}
	if _, got := subscribe("a", "x", "y"); got != albatross.Failure(ErrBusy.Error()) {
		t.Errorf("the third, by a path below: %v", got)
	}
	if _, got := subscribe("b", "x"); got != albatross.Text("subscribed") {
		t.Errorf("another path: %v", got)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// TestSlowClientsAreLeft has clients that stop in every part of a conversation; others are served meanwhile.
func TestSlowClientsAreLeft(t *testing.T) {
	l := newLab(t, Config{speak: time.Second}, func(conn net.Conn, h albatross.Header, m albatross.Command) {
		if set, ok := m.(albatross.BlockSet); ok && readBlock(conn, set) != nil {
			return
		}
		created(conn, h, m)
	})
	dial := func(m albatross.Command, say string) net.Conn {
		conn, err := l.endpoint(l.root).Dial(testContext(t), forge(t, l.root, forged{cn: "web", extension: extension(t, m)}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	plain := func(say string) net.Conn {
		conn, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	slow := map[string]net.Conn{
		"one that says nothing":        plain(""),
		"one with half a hello":        plain("\x16\x03\x01\x02\x00\x01"),
		"one that sends no image":      dial(albatross.UnikernelCreate{}, ""),
		"one that sends half an image": dial(albatross.UnikernelCreate{}, "\x00\x00\x00\x04half"),
		"one that sends half a block":  dial(albatross.BlockSet{}, "\x00\x00\x00\x04half\x00"),
	}
	if heard, err := l.raw(forge(t, l.root, forged{cn: ".", extension: extension(t, albatross.UnikernelInfo{})}), nil); err != nil || len(heard) != 1 {
		t.Errorf("meanwhile: heard %v, %v", heard, err)
	}
	for what, conn := range slow {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		heard, err := io.ReadAll(conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s is still there", what)
		}
		if strings.Contains(what, "image") && !bytes.Contains(heard, []byte("timeout")) {
			t.Errorf("%s heard %q", what, heard)
		}
		_ = conn.Close()
	}
}

// TestSubscribersMayBeSilent has a line come after the time in which clients have to speak.
func TestSubscribersMayBeSilent(t *testing.T) {
	l := newLab(t, Config{speak: time.Second}, func(conn net.Conn, h albatross.Header, _ albatross.Command) {
		_ = albatross.WriteReply(conn, h, albatross.Text("subscribed"))
		timer := time.NewTimer(1500 * time.Millisecond)
		defer timer.Stop()
		<-timer.C
		_ = albatross.WriteData(conn, h.Name, albatross.ConsoleData{Time: time.UnixMilli(1), Line: "late"})
	})
	heard, err := l.raw(forge(t, l.root, forged{cn: "web", extension: extension(t, albatross.ConsoleSubscribe{})}), nil)
	if err != nil || len(heard) != 2 {
		t.Errorf("heard %v, %v", heard, err)
	}
}

// TestFastClientsHaveMoreTime sends for longer than a slow client could, fast enough.
func TestFastClientsHaveMoreTime(t *testing.T) {
	for rate, ok := range map[int64]bool{1: true, 1 << 30: false} {
		synctest.Test(t, func(t *testing.T) { // a machine that stalls cannot make both ready
			ours, theirs := net.Pipe()
			c := &pacedConn{Conn: ours}
			c.expect(50*time.Millisecond, rate)
			done := make(chan error, 1)
			go func() {
				defer close(done)
				timer := time.NewTimer(100 * time.Millisecond)
				defer timer.Stop()
				if _, err := theirs.Write([]byte("xx")); err != nil {
					return
				}
				<-timer.C
				_, _ = theirs.Write([]byte("x"))
			}()
			if _, err := io.ReadFull(c, make([]byte, 3)); (err == nil) != ok {
				t.Errorf("rate %d: %v", rate, err)
			}
			_ = theirs.Close()
			<-done
		})
	}
}
