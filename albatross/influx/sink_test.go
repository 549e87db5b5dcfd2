package influx_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/influx"
)

const patient = 20 * time.Second

// counter counts lines by their end.
type counter struct{ sent, dropped atomic.Int64 }

func (c *counter) count(lines int, sent bool) {
	if sent {
		c.sent.Add(int64(lines))
	} else {
		c.dropped.Add(int64(lines))
	}
}

// run runs a sink until the test ends or the function that it gives is called.
func run(t *testing.T, cfg influx.Config) (s *influx.Sink, c *counter, stop func()) {
	t.Helper()
	c = &counter{}
	cfg.Log, cfg.Count = slog.New(slog.DiscardHandler), c.count
	s, err := influx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the sink ended: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, c, stop
}

// add adds samples, which are one line each, of vm0, vm1 and so on.
func add(s *influx.Sink, from, to int) {
	for i := from; i < to; i++ {
		s.Add("vm"+strconv.Itoa(i), albatross.Stats{}, time.Unix(1, 0))
	}
}

// listener is an endpoint over TCP.
type listener struct {
	t *testing.T
	net.Listener
}

func listen(t *testing.T, addr string) *listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &listener{t, l}
}

// accept takes a connection.
func (l *listener) accept() (net.Conn, *bufio.Scanner) {
	l.t.Helper()
	err := l.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patient))
	if err != nil {
		l.t.Fatal(err)
	}
	conn, err := l.Accept()
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(patient))
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn, bufio.NewScanner(conn)
}

// wants reads the lines of samples.
func (l *listener) wants(lines *bufio.Scanner, from, to int) {
	l.t.Helper()
	for i := from; i < to; i++ {
		if want := "resource_usage,vm=vm" + strconv.Itoa(i) + " "; !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			l.t.Fatalf("line %q, %v; want %s...", lines.Text(), lines.Err(), want)
		}
	}
}

func TestLinesGoOverTCPAgainAfterABreak(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	s, c, stop := run(t, influx.Config{Target: "tcp://" + l.Addr().String()})
	add(s, 0, 3)
	conn, lines := l.accept()
	l.wants(lines, 0, 3)

	_ = l.Close()
	_ = conn.Close()
	back := listen(t, l.Addr().String())
	tcp, n := back.Listener.(*net.TCPListener), 3
	for conn = nil; conn == nil; n++ { // what is sent before it notices is lost: TCP does not tell
		add(s, n, n+1)
		_ = tcp.SetDeadline(time.Now().Add(10 * time.Millisecond))
		conn, _ = tcp.Accept()
	}
	defer func() { _ = conn.Close() }()
	add(s, n, n+2)
	stop() // what was added is sent before it ends
	lines = bufio.NewScanner(conn)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	var first int
	if _, err := fmt.Sscanf(lines.Text(), "resource_usage,vm=vm%d ", &first); err != nil || first < 3 {
		t.Fatalf("line %q: %v", lines.Text(), err)
	}
	back.wants(lines, first+1, n+2)
	if lines.Scan() || c.sent.Load() != int64(n+2) || c.dropped.Load() != 0 {
		t.Errorf("%d lines were sent, %d dropped, and then came %q; want %d and 0", c.sent.Load(), c.dropped.Load(), lines.Text(), n+2)
	}
}

// What an endpoint that is away misses comes when it is back.
func TestLinesWaitForAnEndpoint(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	_ = l.Close()
	s, c, stop := run(t, influx.Config{Target: addr})
	add(s, 0, 3)
	back := listen(t, addr)
	_, lines := back.accept()
	back.wants(lines, 0, 3)
	stop()
	if c.sent.Load() != 3 || c.dropped.Load() != 0 {
		t.Errorf("%d lines were sent, %d dropped; want 3 and 0", c.sent.Load(), c.dropped.Load())
	}
}

func TestWhatWaitsIsBoundedAndNobodyWaitsForIt(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	addr := l.Addr().String()
	_ = l.Close()
	const limit = 64 << 10
	s, c, stop := run(t, influx.Config{Target: addr, Limit: limit})
	begin := time.Now()
	add(s, 0, 10_000) // 2 MB
	if d := time.Since(begin); d > 15*time.Second {
		t.Errorf("it took %v to add what nobody wants", d)
	}
	if got := c.dropped.Load(); got < 9_000 || got >= 10_000 {
		t.Errorf("%d of 10000 lines were dropped", got)
	}
	back := listen(t, addr)
	_, lines := back.accept()
	var last string
	n := 0
	for last != "vm9999" && lines.Scan() {
		_, rest, _ := strings.Cut(lines.Text(), "vm=")
		last, _, _ = strings.Cut(rest, " ")
		n++
	}
	stop()
	if last != "vm9999" || int64(n) != 10_000-c.dropped.Load() || int64(n) != c.sent.Load() {
		t.Errorf("%d lines came, the last %s; %d were sent and %d dropped", n, last, c.sent.Load(), c.dropped.Load())
	}
}

// An endpoint that takes nothing any more costs lines and not the one who adds them, nor the end of the service.
func TestAnEndpointThatIsStuck(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	s, c, stop := run(t, influx.Config{Target: l.Addr().String(), Limit: 1 << 20})
	add(s, 0, 1)
	l.accept() // and reads nothing
	begin := time.Now()
	for c.dropped.Load() == 0 {
		add(s, 0, 1000)
	}
	stop()
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("it took %v to end", d)
	}
}

// database is an endpoint over HTTP that answers with status until it is told otherwise.
type database struct {
	*httptest.Server
	status  atomic.Int32
	seen    chan *http.Request
	written chan string
}

func newDatabase(t *testing.T, status int) *database {
	t.Helper()
	d := &database{seen: make(chan *http.Request, 16), written: make(chan string, 16)}
	d.status.Store(int32(status))
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(int(d.status.Load()))
		_, _ = io.WriteString(w, `{"error":"so it is"}`)
		d.seen <- r
		d.written <- string(body)
	}))
	t.Cleanup(d.Close)
	return d
}

// next gives the next request.
func (d *database) next(t *testing.T) (*http.Request, string) {
	t.Helper()
	select {
	case r := <-d.seen:
		return r, <-d.written
	case <-time.After(patient):
		t.Fatal("no request came")
	}
	return nil, ""
}

func TestLinesGoOverHTTPInBatches(t *testing.T) {
	d := newDatabase(t, http.StatusNoContent)
	s, c, stop := run(t, influx.Config{Target: d.URL + "/api/v2/write?org=o&bucket=b&precision=s", Token: "secret"})
	add(s, 0, 100)
	r, body := d.next(t)
	if r.Method != http.MethodPost || r.URL.Path != "/api/v2/write" || r.URL.Query().Get("bucket") != "b" || r.Header.Get("Authorization") != "Token secret" {
		t.Errorf("request is %s %s %v", r.Method, r.URL, r.Header)
	}
	if n := strings.Count(body, "\n"); n != 100 || !strings.HasSuffix(body, "i 1\n") {
		t.Errorf("%d lines came, want 100 with timestamps in seconds:\n%s", n, body[max(0, len(body)-100):])
	}

	d.status.Store(http.StatusServiceUnavailable) // and takes it another time
	add(s, 100, 101)
	_, first := d.next(t)
	d.status.Store(http.StatusOK)
	if _, again := d.next(t); again != first {
		t.Errorf("after %q came %q, want the same", first, again)
	}

	d.status.Store(http.StatusBadRequest) // will not take it ever
	add(s, 101, 102)
	d.next(t)
	d.status.Store(http.StatusOK)
	add(s, 102, 103)
	if _, body := d.next(t); !strings.HasPrefix(body, "resource_usage,vm=vm102 ") {
		t.Errorf("after what was refused came %q", body)
	}
	stop()
	if c.sent.Load() != 102 || c.dropped.Load() != 1 {
		t.Errorf("%d lines were sent, %d dropped; want 102 and 1", c.sent.Load(), c.dropped.Load())
	}
}

func TestTargets(t *testing.T) {
	for target, ok := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:8094": true, "tcp://h:1": true, "[::1]:8094": true, "http://h:8086/write?db=x": true,
		"https://u:secret@h/write?db=x&precision=ms": true, "": false, "tcp://": false, "http://h": false, "http://u:secret@h:8086/": false,
		"udp://h:1": false, "tcp://u:secret@h:1": false, "tcp://h:1/x": false, "http://h/write?precision=day": false, "http://u:secret@%zz/": false,
	} {
		_, err := influx.New(influx.Config{Target: target})
		if (err == nil) != ok || err != nil && !errors.Is(err, influx.ErrTarget) {
			t.Errorf("%q: %v", target, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}
