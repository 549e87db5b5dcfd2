package vmm_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/bus/bustest"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/vmm"
)

// loopback makes 127.0.0.1 work in the namespace of the test.
func loopback(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// afar puts a TLS endpoint before the host's daemon, and gives it as the holder of a delegated path sees it.
func (w *world) afar(label string, p albatross.Policy) (e *remote.Endpoint, serve func(net.Listener) (stop func())) {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	loopback(w.t)
	now := time.Now()
	rootKey, err := remote.NewKey("ed25519")
	must(err)
	root, err := remote.NewRoot("root", rootKey, now, time.Hour)
	must(err)
	serverKey, err := remote.NewKey("ed25519")
	must(err)
	server, err := root.Server("server", serverKey.Public(), now, time.Hour)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(root.Chain[0])
	ca, err := root.Delegate(label, p, now)
	must(err)
	return &remote.Endpoint{Roots: pool, CA: ca}, func(l net.Listener) func() {
		srv := remote.NewServer(remote.Config{
			Certificate: tls.Certificate{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}, CA: pool, Dir: filepath.Join(w.dir, "run"),
		}, slog.New(slog.DiscardHandler))
		return bustest.Run(w.t, func(ctx context.Context) error { return srv.Serve(ctx, l) })
	}
}

func TestARemoteDaemonIsServedOverTLS(t *testing.T) {
	w := newWorld(t)
	w.create("web.web.9", "wait") // of somebody else: not in the path
	block := 1
	e, serve := w.afar("fulmar", albatross.Policy{Unikernels: 4, Memory: 64, CPUIDs: []int{0, 1}, Bridges: []string{"br0"}, Block: &block})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.Address = l.Addr().String()
	stop := serve(l)
	lines, err := w.bus.NC.SubscribeSync(messages.ConsoleSubject("h1", "web.web.4"))
	if err != nil {
		t.Fatal(err)
	}
	live := w.live("web.web.4")
	w.vmm(func(c *vmm.Config) {
		c.Dir, c.Path, c.Remote, c.CPUs = filepath.Join(w.dir, "nothing"), "fulmar", &vmm.Remote{Client: e.Client()}, []int{0}
	})
	d := w.leased(4, "lines", "3")
	begin := time.Now()
	w.start(d)
	t.Logf("leased to started: %s", time.Since(begin))
	if diff := cmp.Diff([]string{":web.web.9", "fulmar:web.web.4"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	for _, want := range []string{"line 0", "line 1", "line 2"} {
		if msg, err := lines.NextMsg(patient); err != nil || string(msg.Data) != want {
			t.Fatalf("console line %v, %v; want %s", msg, err, want)
		}
	}
	past, err := w.bus.Console(t.Context(), "h1", "web.web.4", 10)
	if err != nil || len(past) != 3 || past[2].GetLine() != "line 2" {
		t.Errorf("the past of the console: %v, %v", past, err)
	}
	w.sample(live, func(m *fulmarv1.Stats) bool { return m.GetResidentBytes() > 0 })
	at := w.leased(5, "exit", "7")
	w.start(at)
	w.eventually("the record says how it ended", func() bool {
		h, _, err := w.bus.Hosts.Get(t.Context(), "h1")
		i := h.GetInstances()
		return err == nil && len(i) == 2 && i[0].GetRunning() && i[1].GetExit() == "exited with status 7" && i[1].GetLastLine() == "exiting"
	})

	more := w.leased(6, "wait")
	more.Content.Units[0].Memory = 64 // more than is delegated, beside what runs
	w.enter(more, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, more)
	if e := w.await(more, messages.Leased); e.GetVerb() != "failed" || e.GetReasonCode() != fulmarv1.ReasonCode_REASON_CODE_START {
		t.Errorf("beyond what is delegated: %s, %s", e.GetVerb(), e.GetReason())
	}

	stop() // the endpoint is away for a while; nothing is refused for that, and all comes back by itself
	live = w.live("web.web.4")
	later := w.leased(7, "wait")
	w.enter(later, fulmarv1.State_STATE_UNDERWAY)
	w.say(messages.Leased, later)
	back, err := net.Listen("tcp", e.Address)
	if err != nil {
		t.Fatal(err)
	}
	serve(back)
	if e := w.await(later, messages.Leased); e.GetVerb() != "started" {
		t.Errorf("when the endpoint was back: %s, %s", e.GetVerb(), e.GetReason())
	}
	w.sample(live, func(*fulmarv1.Stats) bool { return true })

	later.Dying = []*fulmarv1.Instance{later.GetUnits()[0].GetInstance(), d.GetUnits()[0].GetInstance()}
	w.enter(later, fulmarv1.State_STATE_CONDEMNED)
	w.enter(d, fulmarv1.State_STATE_CONDEMNED)
	w.say(messages.Drained, later)
	if e := w.await(later, messages.Drained); e.GetVerb() != "stopped" {
		t.Errorf("after drained came %s", e.GetVerb())
	}
	if diff := cmp.Diff([]string{":web.web.9"}, w.running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
}
