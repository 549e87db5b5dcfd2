package hello_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/examples/hello"
)

// get returns the status and the body of an answer.
func get(ctx context.Context, client *http.Client, path string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+guestAddr+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// expect gets a path and compares.
func expect(ctx context.Context, client *http.Client, path string, status int, body string) error {
	gotStatus, gotBody, err := get(ctx, client, path)
	if err != nil {
		return err
	}
	if gotStatus != status || gotBody != body {
		return fmt.Errorf("%s: %d %q, want %d %q", path, gotStatus, gotBody, status, body)
	}
	return nil
}

func TestBuildIsReproducible(t *testing.T) {
	again, err := hello.Build(testContext(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) {
		t.Error("two builds differ")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(again), "*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{again}, left); diff != "" {
		t.Error("files in the folder (-want +got):\n", diff)
	}
}

func TestBuildSaysWhatGCCSaid(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := hello.Build(testContext(t), t.TempDir()); err == nil || !strings.Contains(err.Error(), "gcc") {
		t.Errorf("without gcc: %v", err)
	}
}

func TestServes(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	g := l.start(ctx, `--hello="hello, world"`)
	if got, want := g.console.String(), "hello: serving hello, world at 10.9.0.7/24 port 80\n"; got != want {
		t.Errorf("console %q, want %q", got, want)
	}
	l.run(ctx, "ping", "-c", "3", "-i", "0.05", "-W", "5", guestIP)
	l.run(ctx, "ping", "-c", "1", "-s", "1472", "-W", "5", guestIP)
	client := l.client(1)
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/":                 {200, "hello, world\n"},
		"/?a=b":             {200, "hello, world\n"},
		"/none":             {404, "Not Found\n"},
		"/sleep?ms=20":      {200, "slept 20 ms\n"},
		"/sleep":            {400, "Bad Request\n"},
		"/sleep?ms=forever": {400, "Bad Request\n"},
		"/exit?code=256":    {400, "Bad Request\n"},
	} {
		if err := expect(ctx, client, path, want.status, want.body); err != nil {
			t.Error(err)
		}
	}
}

func TestUnhealthy(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--unhealthy")
	l.run(ctx, "ping", "-c", "1", "-W", "5", guestIP)
	for _, path := range []string{"/", "/none", "/sleep?ms=1", "/exit?code=1"} {
		if err := expect(ctx, l.client(1), path, 503, "Service Unavailable\n"); err != nil {
			t.Error(err)
		}
	}
}

func TestPort(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--port=8080")
	if _, err := l.dial(ctx, "tcp", guestAddr); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("port 80: %v, want connection refused", err)
	}
	conn := l.connect(ctx, "tcp", guestIP+":8080")
	if got := exchange(t, conn, "GET / HTTP/1.0\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\nhello\n") {
		t.Errorf("port 8080: %q", got)
	}
}

func TestConcurrentKeepAlive(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--hello=all")
	const connections, requests = 300, 5
	var all sync.WaitGroup
	var open sync.WaitGroup // every connection is open before the first request
	open.Add(connections)
	for i := range connections {
		all.Go(func() {
			conn, err := l.dial(ctx, "tcp", guestAddr)
			open.Done()
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			defer conn.Close()
			open.Wait()
			r := bufio.NewReader(conn)
			for n := range requests {
				fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if status, body, err := readAnswer(r); status != 200 || body != "all\n" {
					t.Errorf("connection %d request %d: %d %q %v", i, n, status, body, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestManyNewConnections(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--hello=new")
	err := l.do(func() error { // one thread for all, so plain sockets
		for i := range 3000 {
			// Both ends close first at times; more than the table has places are then in TIME-WAIT at once.
			closing := [3]string{"", "Connection: close\r\n", "Connection: close\r\n"}[i%3]
			if err := oneRequest(ctx, "GET / HTTP/1.1\r\nHost: a\r\n"+closing+"\r\n", "new\n"); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUDPEcho(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "udp", guestAddr)
	for _, size := range []int{0, 1, 2, 3, 512, 1472} {
		sent := strings.Repeat("u", size)
		if _, err := conn.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2000)
		n, err := conn.Read(got)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if string(got[:n]) != sent {
			t.Errorf("%d bytes came back as %q", size, got[:n])
		}
	}
	other := l.connect(ctx, "udp", guestIP+":81")
	if _, err := other.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("another port: %v, want connection refused", err)
	}
}

func TestSleepBlocksNobodyElse(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	slow, quick := l.connect(ctx, "tcp", guestAddr), l.connect(ctx, "tcp", guestAddr)
	start := time.Now()
	// A request behind a sleeping one of the same connection waits its turn.
	fmt.Fprint(slow, "GET /sleep?ms=500 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	r := bufio.NewReader(quick)
	for range 100 {
		fmt.Fprint(quick, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if status, _, err := readAnswer(r); status != 200 {
			t.Fatal(status, err)
		}
	}
	served := time.Since(start)
	r = bufio.NewReader(slow)
	for _, want := range []string{"slept 500 ms\n", "hello\n"} {
		if status, body, err := readAnswer(r); status != 200 || body != want {
			t.Fatalf("%d %q %v, want %q", status, body, err, want)
		}
	}
	if slept := time.Since(start); slept < 500*time.Millisecond || served > slept {
		t.Errorf("others were served for %v, slept for %v", served, slept)
	}
}

func TestExitStatus(t *testing.T) {
	for _, code := range []int{0, 7, 255} {
		ctx, l := testContext(t), newLab(t)
		g := l.start(ctx)
		client := l.client(1)
		want := fmt.Sprintf("exiting with status %d\n", code)
		if err := expect(ctx, client, fmt.Sprintf("/exit?code=%d", code), 200, want); err != nil {
			t.Error(err)
		}
		client.CloseIdleConnections()
		if got := g.exitStatus(ctx); got != code {
			t.Errorf("exit status %d, want %d", got, code)
		}
	}
}

func TestExitsWithoutAcknowledgement(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	g := l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if status, _, err := readAnswer(bufio.NewReader(conn)); status != 200 {
		t.Fatal(status, err)
	}
	l.run(ctx, "iptables", "-A", "INPUT", "-s", guestIP, "-j", "DROP")
	fmt.Fprint(conn, "GET /exit?code=9 HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := g.exitStatus(ctx); got != 9 {
		t.Errorf("exit status %d, want 9", got)
	}
}

func TestBadOptions(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct{ args, says string }{
		{"--ipv4=10.9.0.7/24 --colour=blue", `hello: unknown option "--colour=blue"`},
		{"--ipv4=10.9.0.7/24 blue", `hello: unexpected argument "blue"`},
		{"", "hello: --ipv4=ADDRESS/LENGTH is missing"},
		{"--ipv4=10.9.0.7", `hello: --ipv4 wants a host's address and prefix length like 10.0.0.7/24, not "10.9.0.7"`},
		{"--ipv4=10.9.0.0/24", `hello: --ipv4 wants a host's address and prefix length like 10.0.0.7/24, not "10.9.0.0/24"`},
		{"--ipv4=10.9.0.256/24", `hello: --ipv4 wants a host's address and prefix length like 10.0.0.7/24, not "10.9.0.256/24"`},
		{"--ipv4=10.9.0.7/33", `hello: --ipv4 wants a host's address and prefix length like 10.0.0.7/24, not "10.9.0.7/33"`},
		{"--ipv4=10.9.0.7/24 --ipv4-gateway=nowhere", `hello: --ipv4-gateway wants an address like 10.0.0.1, not "nowhere"`},
		{"--ipv4=10.9.0.7/24 --port=0", `hello: --port wants a number from 1 to 65535, not "0"`},
		{"--ipv4=10.9.0.7/24 --port=70000", `hello: --port wants a number from 1 to 65535, not "70000"`},
		{"--ipv4=10.9.0.7/24 --port=80 --port=81", `hello: given twice: "--port=81"`},
		{"--ipv4=10.9.0.7/24 --unhealthy=yes", `hello: unknown option "--unhealthy=yes"`},
		{`--ipv4=10.9.0.7/24 --hello="a b`, `hello: a quotation mark is never closed in "--hello=a b"`},
		{"--ipv4=10.9.0.7/24 --hello=" + strings.Repeat("x", 1025), "hello: --hello wants at most 1024 bytes"},
	} {
		g := l.launch(c.args)
		if status := g.exitStatus(testContext(t)); status != 64 {
			t.Errorf("%s: exit status %d, want 64", c.args, status)
		}
		if diff := cmp.Diff(c.says+"\n", g.console.String()); diff != "" {
			t.Errorf("%s: console (-want +got):\n%s", c.args, diff)
		}
	}
}

func TestQuotedValues(t *testing.T) {
	for argument, want := range map[string]string{
		`--hello=plain`:        "plain",
		`--hello="two words"`:  "two words",
		`"--hello=two words"`:  "two words",
		`--hello=two\ words`:   "two words",
		`--hello="\"quoted\""`: `"quoted"`,
		`--hello=back\\slash`:  `back\slash`,
		`--hello=`:             "",
	} {
		ctx, l := testContext(t), newLab(t)
		l.start(ctx, argument)
		if err := expect(ctx, l.client(1), "/", 200, want+"\n"); err != nil {
			t.Errorf("%s: %v", argument, err)
		}
	}
}
