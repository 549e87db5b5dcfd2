package influx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	defaultPort = "8094" // of albatross-influx, and of Telegraf's socket listener
	dialTime    = 5 * time.Second
	sendTime    = 10 * time.Second // for the endpoint to take one batch
	excerpt     = 200              // bytes of an endpoint's explanation
)

// ErrTarget reports an endpoint that lines cannot be sent to.
var ErrTarget = errors.New("influx: bad endpoint")

// refusedError is what an endpoint says about lines that it will not take another time either.
type refusedError struct{ error }

// target is where lines go.
type target interface {
	send(ctx context.Context, lines []byte) error
	close()
}

// parseTarget reads tcp://HOST:PORT, HOST[:PORT], which is the same, or the URL to which a database wants lines written. Unit
// is what timestamps count there.
func parseTarget(s, token string) (to target, unit time.Duration, err error) {
	if !strings.Contains(s, "://") {
		s = "tcp://" + s
	}
	u, err := url.Parse(s)
	if err != nil { // the error may hold a password
		return nil, 0, fmt.Errorf("%w: it is no URL", ErrTarget)
	}
	switch {
	case u.Hostname() == "":
		return nil, 0, fmt.Errorf("%w: %q names no host", ErrTarget, shown(u))
	case u.Scheme == "tcp" && (u.Path != "" || u.RawQuery != "" || u.User != nil):
		return nil, 0, fmt.Errorf("%w: %q: over TCP there is only tcp://HOST:PORT", ErrTarget, shown(u))
	case u.Scheme == "tcp":
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		return &tcpTarget{addr: net.JoinHostPort(u.Hostname(), port)}, time.Nanosecond, nil
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, 0, fmt.Errorf("%w: %q: want tcp://HOST:PORT or http(s)://HOST:PORT/write?db=NAME", ErrTarget, shown(u))
	case strings.Trim(u.Path, "/") == "":
		return nil, 0, fmt.Errorf("%w: %q has no path: want /write?db=NAME, or /api/v2/write?org=NAME&bucket=NAME", ErrTarget, shown(u))
	}
	unit, known := units()[u.Query().Get("precision")]
	if !known {
		return nil, 0, fmt.Errorf("%w: unknown precision %q", ErrTarget, u.Query().Get("precision"))
	}
	return &httpTarget{url: u.String(), token: token, client: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}}, unit, nil
}

// units are the precisions of InfluxDB 1 and 2.
func units() map[string]time.Duration {
	return map[string]time.Duration{
		"": time.Nanosecond, "ns": time.Nanosecond, "n": time.Nanosecond, "us": time.Microsecond, "u": time.Microsecond,
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour,
	}
}

// shown is a URL without what may be secret in it.
func shown(u *url.URL) string { return u.Scheme + "://" + u.Host + u.Path }

// tcpTarget is a connection that is made when it is needed.
type tcpTarget struct {
	addr string
	conn net.Conn
	gone chan struct{} // closed when the other side has closed conn
}

func (t *tcpTarget) send(ctx context.Context, lines []byte) error {
	if t.conn != nil {
		select {
		case <-t.gone: // what is written now would be lost
			t.close()
		default:
		}
	}
	if t.conn == nil {
		if err := t.dial(ctx); err != nil {
			return err
		}
	}
	conn := t.conn
	if err := conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		t.close()
		return fmt.Errorf("send lines to %s: %w", t.addr, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(lines); err != nil {
		t.close()
		return fmt.Errorf("send lines to %s: %w", t.addr, err)
	}
	return nil
}

func (t *tcpTarget) dial(ctx context.Context) error {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err) // it names the address
	}
	gone := make(chan struct{})
	go func() { // ends with the connection, which close closes and waits for
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	t.conn, t.gone = conn, gone
	return nil
}

func (t *tcpTarget) close() {
	if t.conn != nil {
		_ = t.conn.Close()
		<-t.gone
		t.conn = nil
	}
}

// httpTarget is a database that takes lines in requests.
type httpTarget struct {
	url    string
	token  string
	client *http.Client
}

func (t *httpTarget) send(ctx context.Context, lines []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, strings.NewReader(string(lines)))
	if err != nil {
		return errors.New("make a request for lines") // the error holds the URL
	}
	r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if t.token != "" {
		r.Header.Set("Authorization", "Token "+t.token)
	}
	answer, err := t.client.Do(r)
	if inner, ok := errors.AsType[*url.Error](err); ok {
		err = inner.Err // without the URL, in which there may be a password
	}
	if err != nil {
		return fmt.Errorf("send lines to %s: %w", r.URL.Host, err)
	}
	why, _ := io.ReadAll(io.LimitReader(answer.Body, excerpt)) // as much as there is
	_ = answer.Body.Close()
	err = fmt.Errorf("%s answered %s: %s", r.URL.Host, answer.Status, strings.Join(strings.Fields(string(why)), " "))
	switch answer.StatusCode / 100 {
	case 2:
		return nil
	case 4:
		switch answer.StatusCode {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			return refusedError{err}
		}
	}
	return err
}

func (t *httpTarget) close() { t.client.CloseIdleConnections() }
