package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"

	"fulmar/bus"
)

// runs is a service that tells when it runs.
type runs struct{ began chan struct{} }

func (r runs) Run(ctx context.Context) error {
	close(r.began)
	<-ctx.Done()
	return nil
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestServe(t *testing.T) {
	s, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	w := lookOn(t, s)
	ctx, stop := context.WithCancel(t.Context())
	svc, ended := runs{make(chan struct{})}, make(chan error, 1)
	c := bus.Config{NATS: s.URL(), HTTP: freeAddr(t)}
	go func() {
		ended <- bus.Serve(ctx, c, "ipam", "host1", slog.New(slog.DiscardHandler), func(*bus.Bus, prometheus.Registerer) (bus.Service, error) { return svc, nil })
	}()
	<-svc.began

	msg, err := w.NC.Request("$SRV.PING.fulmar-ipam", nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	var ping micro.Ping
	if err := json.Unmarshal(msg.Data, &ping); err != nil || ping.Version != bus.Version || ping.Metadata["host"] != "host1" {
		t.Errorf("micro answers %s, %v", msg.Data, err)
	}
	for path, want := range map[string]string{"/healthz": "", "/metrics": "go_goroutines"} {
		if body := get(t, "http://"+c.HTTP+path); !strings.Contains(body, want) {
			t.Errorf("%s answers %q, want %q in it", path, body, want)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) && err != nil {
		t.Errorf("it ended with %v", err)
	}
	if msg, err := w.NC.Request("$SRV.PING.fulmar-ipam", nil, patience); err == nil {
		t.Errorf("a service that has ended answers %s", msg.Data)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s, %v", url, r.Status, err)
	}
	return string(body)
}

func TestServeSaysThatNoBusAnswers(t *testing.T) {
	const secret = "s3cret"
	addr := freeAddr(t)
	for _, urls := range []string{"nats://" + addr, "nats://jo:s3cret@" + addr, "nats://s3cret@" + addr + ", jo:s3cret@" + addr, "nats://jo:s3cret%zz@" + addr} {
		err := bus.Serve(t.Context(), bus.Config{NATS: urls}, "ipam", "", slog.New(slog.DiscardHandler), nil)
		if !errors.Is(err, bus.ErrNoBus) || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), secret) {
			t.Errorf("of %s: got %v", urls, err)
		}
	}
}
