package monitor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// errNoAnswer reports that a probe heard nothing in time.
var errNoAnswer = errors.New("no answer")

// probe asks a unit for a sign of life, one question at a time.
type probe interface {
	// ask is nil when the answer was good. It waits for the first sign of life for patience, and for the whole answer
	// for timeout, which is not less.
	ask(ctx context.Context, patience, timeout time.Duration) error
	// close lets go of what ask keeps for the next time.
	close()
}

// check is a health check of a unit, ready to run.
type check struct {
	what          string // as a reason names it: http GET /
	probe         probe
	interval      time.Duration
	timeout       time.Duration
	successes     int
	failures      int
	startDeadline time.Duration // 0: none
	good, bad     prometheus.Counter
}

func (s *Service) newChecks(specs []*fulmarv1.HealthCheck, address string) ([]*check, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	if !addr.Is4() {
		return nil, fmt.Errorf("address %s is not IPv4", addr)
	}
	var all []*check
	for _, spec := range specs {
		c := &check{
			interval: spec.GetInterval().AsDuration(), timeout: spec.GetTimeout().AsDuration(), startDeadline: spec.GetStartDeadline().AsDuration(),
			successes: int(spec.GetSuccesses()), failures: int(spec.GetFailures()),
		}
		var kind string
		if kind, c.what, c.probe, err = s.newProbe(spec, addr); err != nil {
			return nil, err
		}
		c.good, c.bad = s.metrics.checks.WithLabelValues(kind, "good"), s.metrics.checks.WithLabelValues(kind, "bad")
		all = append(all, c)
	}
	return all, nil
}

func (s *Service) newProbe(spec *fulmarv1.HealthCheck, addr netip.Addr) (kind, what string, p probe, err error) {
	switch spec := spec.GetProbe().(type) {
	case *fulmarv1.HealthCheck_Icmp:
		return "icmp", "icmp", icmpProbe{pinger: s.pinger, address: addr}, nil
	case *fulmarv1.HealthCheck_Tcp:
		return "tcp", fmt.Sprintf("tcp port %d", spec.Tcp.GetPort()), tcpProbe(netip.AddrPortFrom(addr, uint16(spec.Tcp.GetPort()))), nil
	case *fulmarv1.HealthCheck_Http:
		p, err := newHTTPProbe(spec.Http, addr)
		return "http", httpWhat(spec.Http), p, err
	case *fulmarv1.HealthCheck_Dns:
		p, err := newDNSProbe(spec.Dns, addr)
		return "dns", fmt.Sprintf("dns %s %s", spec.Dns.GetType(), spec.Dns.GetName()), p, err
	}
	return "", "", nil, errors.New("a check is one of icmp, tcp, http and dns")
}

// run asks once and counts.
func (c *check) run(ctx context.Context, patience, timeout time.Duration) error {
	return c.count(ctx, c.probe.ask(ctx, patience, timeout))
}

// count counts a result, and gives it back unless ctx ended it.
func (c *check) count(ctx context.Context, result error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case result != nil:
		c.bad.Inc()
	default:
		c.good.Inc()
	}
	return result
}

func (c *check) close() { c.probe.close() }

// tcpProbe opens a connection and closes it.
type tcpProbe netip.AddrPort

func (p tcpProbe) ask(ctx context.Context, patience, _ time.Duration) error {
	conn, err := dial(ctx, netip.AddrPort(p), patience)
	if err != nil {
		return plain(err)
	}
	return plain(conn.Close())
}

func (tcpProbe) close() {}

// dial connects. Closing the connection resets it, so that nothing of it stays in the unit: a MirageOS unikernel keeps
// about 10 KB for 2 s for each connection that ends in the normal way.
func dial(ctx context.Context, to netip.AddrPort, patience time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	if err := tcp.SetLinger(0); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return tcp, nil
}

// plain says what went wrong in the words of a reason.
func plain(err error) error {
	var timeout interface{ Timeout() bool }
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return errNoAnswer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed before the answer was complete")
	case errors.As(err, &errno):
		return errno
	}
	return err
}

const (
	maxBody    = 64 << 10 // of an answer is read and matched
	maxHeaders = 64 << 10
	idle       = 15 * time.Second // a connection that was kept for longer is not used again
)

// httpProbe sends a GET request, over the same connection each time if the unit lets it.
type httpProbe struct {
	to      netip.AddrPort
	request *http.Request
	status  int // 0: any of 200 to 399
	body    *regexp.Regexp

	conn *net.TCPConn // kept from the last time, or nil
	in   *bufio.Reader
	used time.Time
}

func httpWhat(spec *fulmarv1.HttpProbe) string {
	if spec.GetPort() == 80 {
		return "http GET " + spec.GetPath()
	}
	return fmt.Sprintf("http GET :%d%s", spec.GetPort(), spec.GetPath())
}

func newHTTPProbe(spec *fulmarv1.HttpProbe, addr netip.Addr) (*httpProbe, error) {
	p := &httpProbe{to: netip.AddrPortFrom(addr, uint16(spec.GetPort())), status: int(spec.GetStatus())}
	host := addr.String()
	if spec.GetPort() != 80 {
		host = net.JoinHostPort(host, strconv.Itoa(int(spec.GetPort())))
	}
	var err error
	if p.request, err = http.NewRequest(http.MethodGet, "http://"+host+spec.GetPath(), http.NoBody); err != nil {
		return nil, fmt.Errorf("http: path %q: %w", spec.GetPath(), err)
	}
	p.request.Header.Set("User-Agent", "fulmar-monitor")
	if spec.GetBody() != "" {
		if p.body, err = regexp.Compile(spec.GetBody()); err != nil {
			return nil, fmt.Errorf("http: body: %w", err)
		}
	}
	return p, nil
}

func (p *httpProbe) ask(ctx context.Context, patience, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	if p.conn != nil && time.Since(p.used) > idle {
		p.close()
	}
	kept := p.conn != nil
	err := p.exchange(ctx, patience, deadline)
	if kept && errors.Is(err, errStale) && ctx.Err() == nil {
		err = p.exchange(ctx, patience, deadline) // the unit had ended the connection in the meantime
	}
	return plain(err)
}

// errStale reports that a connection ended before anything of an answer came.
var errStale = errors.New("the connection was closed without an answer")

func (p *httpProbe) exchange(ctx context.Context, patience time.Duration, deadline time.Time) error {
	if p.conn == nil {
		conn, err := dial(ctx, p.to, patience)
		if err != nil {
			return err
		}
		p.conn, p.in = conn, bufio.NewReader(conn)
	}
	conn := p.conn
	if err := conn.SetDeadline(deadline); err != nil {
		p.close()
		return err
	}
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // a closed one needs none
	keep, err := p.answer()
	if !interrupt() || !keep {
		p.close()
	}
	return err
}

// answer sends the request and judges the answer. It reports whether the connection can be used again.
func (p *httpProbe) answer() (keep bool, err error) {
	p.in.Reset(io.LimitReader(p.conn, maxHeaders+maxBody))
	if err := p.request.Write(p.conn); err != nil {
		return false, stale(err)
	}
	if _, err := p.in.Peek(1); err != nil {
		return false, stale(err)
	}
	response, err := http.ReadResponse(p.in, p.request)
	for err == nil && response.StatusCode >= 100 && response.StatusCode < 200 && response.StatusCode != http.StatusSwitchingProtocols {
		response, err = http.ReadResponse(p.in, p.request)
	}
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	if err != nil && p.body != nil {
		return false, err
	}
	n, err := response.Body.Read(make([]byte, 1))
	p.used = time.Now()
	keep = n == 0 && errors.Is(err, io.EOF) && !response.Close && p.in.Buffered() == 0
	return keep, p.judge(response.StatusCode, body)
}

func stale(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errStale
	}
	return err
}

func (p *httpProbe) judge(status int, body []byte) error {
	if status != p.status && (p.status != 0 || status < 200 || status > 399) {
		return fmt.Errorf("status %d", status)
	}
	if p.body != nil && !p.body.Match(body) {
		return fmt.Errorf("the body does not match %q", p.body)
	}
	return nil
}

func (p *httpProbe) close() {
	if p.conn != nil {
		_ = p.conn.Close() // it is reset: nothing can be lost
		p.conn, p.in = nil, nil
	}
}
