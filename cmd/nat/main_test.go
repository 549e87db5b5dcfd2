package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fulmar/bus"
	"fulmar/firewall/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

func TestServeUntilItIsStopped(t *testing.T) {
	nstest.NeedRoot(t)
	server, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	free, err := net.Listen("tcp4", "127.0.0.1:0") // nobody else is in this network namespace to take it then
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, config{Config: bus.Config{NATS: server.URL(), HTTP: addr}, Host: "host1"}, slog.New(slog.DiscardHandler))
	}()
	if text := get(t, "http://"+addr+"/healthz", ended); text != "" {
		t.Errorf("healthz says %q", text)
	}
	for _, metric := range []string{"fulmar_nat_switches_total 0", "fulmar_nat_connections_limit"} {
		if text := get(t, "http://"+addr+"/metrics", ended); !strings.Contains(text, metric) {
			t.Errorf("there is no %s in\n%s", metric, text)
		}
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// get asks until somebody answers.
func get(t *testing.T, url string, ended <-chan error) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := client.Get(url)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, body)
			}
			return string(body)
		}
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it ended with %v", err)
		}
	}
}

func TestAHostThatCannotBeNamedIsRefused(t *testing.T) {
	server, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	err = serve(t.Context(), config{Config: bus.Config{NATS: server.URL()}, Host: "Host.1"}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `host "Host.1"`) {
		t.Errorf("it ended with %v", err)
	}
}
