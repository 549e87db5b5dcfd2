package monitor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

func loopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// ask asks once with much patience, and gives the error's text.
func ask(t *testing.T, p probe) string {
	t.Helper()
	if err := p.ask(t.Context(), 10*time.Second, 10*time.Second); err != nil {
		return err.Error()
	}
	return ""
}

func TestTCPProbe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := ask(t, tcpProbe(l.Addr().(*net.TCPAddr).AddrPort())); got != "" {
		t.Errorf("an open port gives %q", got)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v, want a reset, which leaves nothing in the unit", err)
	}
	if got := ask(t, tcpProbe(netip.AddrPortFrom(loopback(), uint16(unused(t))))); got != "connection refused" {
		t.Errorf("a closed port gives %q", got)
	}
}

func TestHTTPProbe(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ready: yes") })
	mux.HandleFunc("/gone", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/gone", http.StatusFound) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", maxBody-4)+"tail"+"beyond")
	})
	mux.HandleFunc("/break", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.URL.RawQuery, " ", r.UserAgent())
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	port := server.Listener.Addr().(*net.TCPAddr).Port
	for name, c := range map[string]struct {
		spec *fulmarv1.HttpProbe
		want string
	}{ // those without an answer are asked with little patience
		"any good status":                         {&fulmarv1.HttpProbe{Path: "/"}, ""},
		"a status of 400 or more":                 {&fulmarv1.HttpProbe{Path: "/gone"}, "status 410"},
		"that very status":                        {&fulmarv1.HttpProbe{Path: "/gone", Status: 410}, ""},
		"another status":                          {&fulmarv1.HttpProbe{Path: "/", Status: 204}, "status 200"},
		"a redirect is not followed":              {&fulmarv1.HttpProbe{Path: "/moved"}, ""},
		"the body matches":                        {&fulmarv1.HttpProbe{Path: "/", Body: "^ready: (yes|soon)$"}, ""},
		"the body does not match":                 {&fulmarv1.HttpProbe{Path: "/", Body: "no"}, `the body does not match "no"`},
		"what is matched ends at 64 KiB":          {&fulmarv1.HttpProbe{Path: "/long", Body: "tail$"}, ""},
		"nothing beyond it is matched":            {&fulmarv1.HttpProbe{Path: "/long", Body: "beyond"}, `the body does not match "beyond"`},
		"the server breaks off":                   {&fulmarv1.HttpProbe{Path: "/break"}, errStale.Error()},
		"no answer in time":                       {&fulmarv1.HttpProbe{Path: "/silent"}, "no answer"},
		"a body without end, nobody asks for it":  {&fulmarv1.HttpProbe{Path: "/stream"}, ""},
		"a body without end that is to be looked": {&fulmarv1.HttpProbe{Path: "/stream", Body: "x"}, "no answer"},
		"host, query and agent are sent":          {&fulmarv1.HttpProbe{Path: "/query?a=b", Body: fmt.Sprintf(`^127\.0\.0\.1:%d a=b fulmar-monitor$`, port)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Port = uint32(port)
			p, err := newHTTPProbe(c.spec, loopback())
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			for range 2 { // the second over the same connection, if that can be used
				timeout := 10 * time.Second
				if c.spec.GetPath() == "/silent" || c.spec.GetPath() == "/stream" {
					timeout = 100 * time.Millisecond
				}
				got := ""
				if err := p.ask(t.Context(), timeout, timeout); err != nil {
					got = err.Error()
				}
				if got != c.want {
					t.Errorf("gives %q, want %q", got, c.want)
				}
			}
		})
	}
}

func TestHTTPKeepsItsConnection(t *testing.T) {
	w := newWeb(t)
	p, err := newHTTPProbe(get(w.port).GetHttp(), loopback())
	if err != nil {
		t.Fatal(err)
	}
	p.request.URL.Path = "/"
	defer p.close()
	for range 20 {
		if got := ask(t, p); got != "" {
			t.Fatal(got)
		}
	}
	if n := w.conns.Load(); n != 1 {
		t.Errorf("20 checks took %d connections", n)
	}
	w.CloseClientConnections() // as a server does whose idle time is over
	if got := ask(t, p); got != "" {
		t.Errorf("after the unit closed the connection: %q", got)
	}
	if n := w.conns.Load(); n != 2 {
		t.Errorf("it took %d connections, want a second one", n)
	}
}

func TestHTTPAgainstWhatIsNotHTTP(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"nothing":              {"", errStale.Error()},
		"another protocol":     {"220 mail ESMTP\r\n", `malformed HTTP status code "mail"`},
		"half an answer":       {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "the connection was closed before the answer was complete"},
		"an early hint":        {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", ""},
		"headers without end":  {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 50000), "the connection was closed before the answer was complete"},
		"more than one answer": {"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 500 No\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			defer l.Close()
			wg.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = http.ReadRequest(bufio.NewReader(conn))
					_, _ = io.WriteString(conn, c.answer)
					_ = conn.Close()
				}
			})
			p, err := newHTTPProbe(&fulmarv1.HttpProbe{Port: uint32(l.Addr().(*net.TCPAddr).Port), Path: "/"}, loopback())
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			for range 2 {
				if got := ask(t, p); got != c.want {
					t.Errorf("gives %q, want %q", got, c.want)
				}
			}
		})
	}
}

func TestDNSProbe(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	wg.Go(func() { serveDNS(conn) })
	port := conn.LocalAddr().(*net.UDPAddr).Port
	for name, c := range map[string]struct {
		spec *fulmarv1.DnsProbe
		want string
	}{
		"an answer":               {&fulmarv1.DnsProbe{Name: "good.example", Type: "A"}, ""},
		"an answer to a full one": {&fulmarv1.DnsProbe{Name: "good.example.", Type: "TXT"}, ""},
		"an error":                {&fulmarv1.DnsProbe{Name: "bad.example", Type: "SOA"}, "SERVFAIL"},
		"no such name":            {&fulmarv1.DnsProbe{Name: "none.example", Type: "MX"}, "NXDOMAIN"},
		"no answer":               {&fulmarv1.DnsProbe{Name: "silent.example", Type: "AAAA"}, "no answer"},
		"only the right answer":   {&fulmarv1.DnsProbe{Name: "wrong.example", Type: "NS"}, "SERVFAIL"},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Port = uint32(port)
			p, err := newDNSProbe(c.spec, loopback())
			if err != nil {
				t.Fatal(err)
			}
			patience := 10 * time.Second
			if c.want == "no answer" {
				patience = 100 * time.Millisecond
			}
			got := ""
			if err := p.ask(t.Context(), patience, patience); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("gives %q, want %q", got, c.want)
			}
		})
	}
	p, err := newDNSProbe(&fulmarv1.DnsProbe{Port: uint32(unused(t)), Name: "good.example", Type: "A"}, loopback())
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, p); got != "connection refused" {
		t.Errorf("a closed port gives %q", got)
	}
	if _, err := newDNSProbe(&fulmarv1.DnsProbe{Port: 53, Name: strings.Repeat("x", 64) + ".example", Type: "A"}, loopback()); err == nil {
		t.Error("a label of 64 bytes was taken")
	}
}

// serveDNS answers by the first label of the question, until the socket is closed.
func serveDNS(conn *net.UDPConn) {
	buf := make([]byte, maxDNS)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		label, _, _ := strings.Cut(m.Questions[0].Name.String(), ".")
		reply := func() {
			if body, err := m.Pack(); err == nil {
				_, _ = conn.WriteToUDPAddrPort(body, from)
			}
		}
		switch m.Response = true; label {
		case "silent":
			continue
		case "bad":
			m.RCode = dnsmessage.RCodeServerFailure
		case "none":
			m.RCode = dnsmessage.RCodeNameError
		case "wrong": // three that are no answers to the question, then one that is
			_, _ = conn.WriteToUDPAddrPort([]byte("junk"), from)
			m.ID++
			reply()
			m.ID--
			m.Response = false
			reply()
			m.Response, m.RCode = true, dnsmessage.RCodeServerFailure
		}
		reply()
	}
}

// opened is a pinger that runs as long as the test.
func opened(t *testing.T) *pinger {
	t.Helper()
	p := newPinger()
	if err := p.open(); err != nil {
		t.Skipf("neither root nor in net.ipv4.ping_group_range: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.run(ctx); err != nil {
			t.Errorf("pinger: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return p
}

func TestPing(t *testing.T) {
	a, b := opened(t), opened(t) // two on one host do not take one another's answers
	var wg sync.WaitGroup
	for i := range 100 {
		for _, p := range []*pinger{a, b} {
			wg.Go(func() {
				to := netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)})
				if got := ask(t, icmpProbe{pinger: p, address: to}); got != "" {
					t.Errorf("ping of %s: %s", to, got)
				}
			})
		}
	}
	wg.Wait()
	if n := len(a.waiting) + len(b.waiting); n != 0 {
		t.Errorf("%d requests are still waited for", n)
	}
}

func TestPingTakesOnlyItsOwnAnswers(t *testing.T) {
	p := newPinger()
	to := netip.MustParseAddr("10.0.0.7")
	token, answered := p.expect(to)
	for name, c := range map[string]struct {
		packet []byte
		from   net.Addr
	}{
		"another address":  {echoReply(token), &net.IPAddr{IP: net.IPv4(10, 0, 0, 8)}},
		"another token":    {echoReply(token + 1), &net.IPAddr{IP: net.IPv4(10, 0, 0, 7)}},
		"a request":        {append([]byte{8}, echoReply(token)[1:]...), &net.IPAddr{IP: net.IPv4(10, 0, 0, 7)}},
		"too short a body": {echoReply(token)[:12], &net.IPAddr{IP: net.IPv4(10, 0, 0, 7)}},
		"nothing":          {nil, &net.IPAddr{IP: net.IPv4(10, 0, 0, 7)}},
	} {
		p.hear(c.packet, c.from)
		select {
		case <-answered:
			t.Fatalf("%s was taken for the answer", name)
		default:
		}
	}
	p.hear(echoReply(token), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 7)})
	select {
	case <-answered:
	default:
		t.Error("the answer was not taken")
	}
}

func echoReply(token uint64) []byte {
	packet := []byte{0, 0, 0, 0, 0, 1, 0, 1}
	for shift := 56; shift >= 0; shift -= 8 {
		packet = append(packet, byte(token>>shift))
	}
	return packet
}

func TestPingWithoutASocketSaysWhatItNeeds(t *testing.T) {
	p := newPinger()
	p.denied = errors.New("no socket")
	if got := ask(t, icmpProbe{pinger: p, address: loopback()}); got != "no socket" {
		t.Errorf("gives %q", got)
	}
}
