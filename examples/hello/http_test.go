package hello_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// readAnswer reads one answer from a connection that may carry more.
func readAnswer(r *bufio.Reader) (int, string, error) {
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// exchange sends text and returns all that comes back until the guest closes.
func exchange(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("after %q: %v", all, err)
	}
	return string(all)
}

// oneRequest makes one connection for one request, from the calling thread's
// namespace.
func oneRequest(ctx context.Context, request, want string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", guestAddr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	status, body, err := readAnswer(bufio.NewReader(conn))
	if err == nil && (status != 200 || body != want) {
		err = fmt.Errorf("%d %q", status, body)
	}
	return err
}

func TestRequests(t *testing.T) {
	const ok, closed = "HTTP/1.1 200 OK", "\r\nConnection: close\r\n"
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	for _, c := range []struct {
		name, request, status string
		contains              string
	}{
		{"close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ok, closed + "\r\nhello\n"},
		{"close among others", "GET / HTTP/1.1\r\nHost: a\r\nconnection: x, Close\r\n\r\n", ok, closed},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", ok, closed},
		{"bare line feeds", "GET / HTTP/1.0\n\n", ok, "hello\n"},
		{"empty lines first", "\r\n\r\nGET / HTTP/1.0\r\n\r\n", ok, "hello\n"},
		{"absolute target", "GET http://a/none HTTP/1.0\r\n\r\n", "HTTP/1.1 404 Not Found", ""},
		{"absolute target without path", "GET http://a HTTP/1.0\r\n\r\n", ok, "hello\n"},
		{"other method", "DELETE / HTTP/1.0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "\r\nAllow: GET, HEAD\r\n"},
		{"garbage", "hello there\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"no version", "GET /\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"folded field", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"control in target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"negative length", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400 Bad Request", closed},
		{"two lengths", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "HTTP/1.1 400 Bad Request", closed},
		{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 501 Not Implemented", closed},
		{"HTTP/2", "GET / HTTP/2.0\r\n\r\n", "HTTP/1.1 505 HTTP Version Not Supported", closed},
		{"head of 4096 bytes", sized(4096), ok, "hello\n"},
		{"head of 4097 bytes", sized(4097), "HTTP/1.1 431 Request Header Fields Too Large", closed},
		{"head of 60000 bytes", sized(60000), "HTTP/1.1 431 Request Header Fields Too Large", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := exchange(t, l.connect(ctx, "tcp", guestAddr), c.request)
			if !strings.HasPrefix(got, c.status+"\r\n") || !strings.Contains(got, c.contains) {
				t.Errorf("%q\nwants %q with %q", got, c.status, c.contains)
			}
		})
	}
}

// sized is a request of n bytes.
func sized(n int) string {
	const before, after = "GET / HTTP/1.0\r\nPadding: ", "\r\n\r\n"
	return before + strings.Repeat("x", n-len(before)-len(after)) + after
}

func TestHeadAndKeepAlive(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	got := exchange(t, conn, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"+
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"+
		"HEAD /exit?code=1 HTTP/1.1\r\nHost: a\r\n\r\n")
	want := "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n\r\n" +
		"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\nConnection: keep-alive\r\n\r\nhello\n" +
		"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\nConnection: close\r\n\r\n"
	if got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	// To ask with HEAD what /exit would say did not end it.
	l.run(ctx, "ping", "-c", "1", "-W", "5", guestIP)
}

func TestPipelining(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--hello="+strings.Repeat("p", 1000))
	conn := l.connect(ctx, "tcp", guestAddr)
	// Far more answers than a send buffer holds, and only read when all is sent.
	const requests = 200
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", requests))
		sent <- err
	}()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for i := range requests {
		if status, body, err := readAnswer(r); status != 200 || len(body) != 1001 {
			t.Fatalf("answer %d: %d %q %v", i, status, body, err)
		}
	}
}

func TestRequestByteByByte(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr) // Go sends each write at once
	for _, b := range []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n") {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if status, body, err := readAnswer(bufio.NewReader(conn)); status != 200 || body != "hello\n" {
		t.Error(status, body, err)
	}
}

func TestBodiesAreSkipped(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	r := bufio.NewReader(conn)
	for _, size := range []int{1, 100, 100_000} {
		go fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%sGET / HTTP/1.1\r\nHost: a\r\n\r\n",
			size, strings.Repeat("G", size))
		for _, want := range []int{405, 200} {
			if status, _, err := readAnswer(r); status != want {
				t.Fatalf("body of %d: %d, want %d: %v", size, status, want, err)
			}
		}
	}
}

func TestHalfClosedClientIsAnswered(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	conn := l.connect(ctx, "tcp", guestAddr)
	fmt.Fprint(conn, "GET /sleep?ms=100 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(all), "slept 100 ms\n") || !strings.HasSuffix(string(all), "hello\n") {
		t.Errorf("%q %v", all, err)
	}
}
