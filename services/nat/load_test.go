package nat

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/firewall"
	"fulmar/firewall/nstest"
	"fulmar/messages"
)

// load asks without end and checks that no question fails and that no answer is of an older generation than one that was
// heard before the question was asked.
type load struct {
	newest atomic.Uint64
	asked  atomic.Int64
	resent atomic.Int64 // connections on which something was sent again
	lost   atomic.Int64 // datagrams
	port   atomic.Int64 // of the last client; none comes from one twice, because the kernel may take it for the first one
	stop   chan struct{}
	wg     sync.WaitGroup
	t      *testing.T
}

func newLoad(t *testing.T) *load {
	l := &load{stop: make(chan struct{}), t: t}
	l.port.Store(10000) // to where others take theirs is room for 20,000
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() {
	select {
	case <-l.stop:
		return
	default:
		close(l.stop)
	}
	l.wg.Wait()
	// What is dropped for a while is sent again after a second, by every client, and answered then.
	const stray = 2 // the machine may stall
	if resent := l.resent.Load(); resent > stray {
		l.t.Errorf("on %d of %d connections something was sent again: packets were dropped", resent, l.asked.Load())
	}
}

// connections opens a connection after another from where do runs, now to one port and now to the other.
func (l *load) connections(do func(func() error) error, pause time.Duration, addrs ...string) {
	l.wg.Go(func() {
		err := do(func() error {
			dialer := net.Dialer{Timeout: answerTime}
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return nil
				case <-tick.C:
				}
				before := l.newest.Load()
				dialer.LocalAddr = &net.TCPAddr{Port: int(l.port.Add(1))}
				conn, err := dialer.Dial("tcp4", addrs[n%len(addrs)])
				if err != nil {
					return err
				}
				_ = conn.(*net.TCPConn).SetLinger(0) // a port in TIME_WAIT would not be free for the next
				err = errors.Join(l.answer(conn, before), l.countResent(conn.(*net.TCPConn)))
				_ = conn.Close()
				if err != nil {
					return err
				}
			}
		})
		if err != nil {
			l.t.Errorf("under load: %v", err)
		}
	})
}

// keepAlive asks on one connection, again and again, and expects the same instance for ever.
func (l *load) keepAlive(space *nstest.Space, addr string) {
	l.t.Helper()
	conn, err := dial(space.Do, "tcp4", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	first, err := ask(conn)
	if err != nil {
		l.t.Fatal(err)
	}
	l.wg.Go(func() {
		defer conn.Close()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			if got, err := ask(conn); err != nil || got != first {
				l.t.Errorf("a connection to %s was answered by %q, %v", first, got, err)
				return
			}
		}
	})
}

// datagrams sends on one flow and expects that it follows every switch: a question that is asked after a deployment was
// said to be published is answered by it or by a newer one. An answer that is on its way when the flow is moved is lost.
func (l *load) datagrams(space *nstest.Space, addr string, published *atomic.Uint64) {
	l.t.Helper()
	conn, err := dial(space.Do, "udp4", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.wg.Go(func() {
		defer conn.Close()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			before := published.Load()
			got, err := askWithin(conn, tryTime)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				l.lost.Add(1)
				continue
			}
			if err != nil {
				l.t.Errorf("datagram: %v", err)
				return
			}
			_, _, generation, ok := messages.ParseInstance(got)
			if !ok || generation < before {
				l.t.Errorf("a datagram sent when %d was published was answered by %q", before, got)
				return
			}
		}
	})
}

// answer reads who answers on a new connection.
func (l *load) answer(conn net.Conn, before uint64) error {
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "?\n"); err != nil {
		return err
	}
	text, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	_, _, generation, ok := messages.ParseInstance(text[:len(text)-1])
	if !ok || generation < before {
		return fmt.Errorf("after an answer of generation %d a new connection was answered by %q", before, text)
	}
	for {
		seen := l.newest.Load()
		if seen >= generation || l.newest.CompareAndSwap(seen, generation) {
			break
		}
	}
	l.asked.Add(1)
	return nil
}

// countResent looks whether the kernel has sent anything of a connection again.
func (l *load) countResent(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if info.Total_retrans > 0 {
		l.resent.Add(1)
	}
	return nil
}

func TestTwentySwitchesUnderLoad(t *testing.T) { eachBackend(t, twentySwitchesUnderLoad) }

func twentySwitchesUnderLoad(t *testing.T, w *world) {
	const switches = 20
	w.nat(t)
	// A host like many others: what is forwarded is dropped unless somebody lets it through.
	iptables(t, "-P", "FORWARD", "DROP")
	t.Cleanup(func() { iptables(t, "-P", "FORWARD", "ACCEPT") })
	two := []string{"8080:80/tcp", "8443:80/tcp", "8053:53/udp"}
	deploy := func(generation uint64) {
		i, _ := w.instance(t, "web", "web", generation, byte(generation+1))
		w.deploy(t, deployment{stack: "web", generation: generation, units: []unit{{"web", two, i}}})
	}
	_, neighbour := w.instance(t, "other", "other", 1000, 200)
	deploy(1)
	var published atomic.Uint64
	published.Store(1)
	l := newLoad(t)
	for range 4 {
		l.connections(w.client.Do, 4*time.Millisecond, "192.0.2.1:8080", "192.0.2.1:8443")
	}
	l.connections(here, 10*time.Millisecond, "127.0.0.1:8080", "192.0.2.1:8443")
	l.connections(neighbour.Do, 10*time.Millisecond, "10.79.0.1:8080", "192.0.2.1:8443")
	l.datagrams(w.client, "192.0.2.1:8053", &published)
	for generation := uint64(2); generation <= switches+1; generation++ {
		l.keepAlive(w.client, "192.0.2.1:8080")
		deploy(generation)
		published.Store(generation)
		// As soon as the old redirect is gone, the next switch may come.
		until(t, func() error { return redirects(generation) })
	}
	l.end()
	if l.asked.Load() < 20*switches {
		t.Errorf("only %d questions were asked", l.asked.Load())
	}
	if l.lost.Load() > switches/2 {
		t.Errorf("%d datagrams were lost", l.lost.Load())
	}
	t.Logf("%d connections over %d switches, %d sent something again, %d datagrams lost", l.asked.Load(), switches, l.resent.Load(), l.lost.Load())
}

func TestTheBackendIsChangedUnderLoad(t *testing.T) { eachBackend(t, theBackendIsChangedUnderLoad) }

func theBackendIsChangedUnderLoad(t *testing.T, w *world) {
	i, _ := w.instance(t, "web", "web", 1, 2)
	stop := w.nat(t)
	w.deploy(t, web(1, i))
	l := newLoad(t)
	for range 3 {
		l.connections(w.client.Do, 3*time.Millisecond, "192.0.2.1:8080")
	}
	l.connections(here, 5*time.Millisecond, "127.0.0.1:8080", "192.0.2.1:8080")
	l.keepAlive(w.client, "192.0.2.1:8080")
	other := map[firewall.Backend]firewall.Backend{firewall.IPTables: firewall.NFTables, firewall.NFTables: firewall.IPTables}
	for range 2 {
		before := l.asked.Load()
		stop()
		w.backend = other[w.backend]
		stop = w.nat(t)
		until(t, func() error {
			rules := rulesOf(t)
			chains, elements := strings.Contains(rules, "-j FULMAR-1\n"), strings.Contains(rules, `8080 comment "web-1"`)
			if chains != (w.backend == firewall.IPTables) || elements != (w.backend == firewall.NFTables) {
				return fmt.Errorf("%s has not taken over:\n%s", w.backend, rules)
			}
			return nil
		})
		until(t, func() error {
			if now := l.asked.Load(); now < before+50 {
				return fmt.Errorf("%d questions were asked", now-before)
			}
			return nil
		})
	}
	l.end()
}
