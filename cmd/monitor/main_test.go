package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"fulmar/bus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServeUntilItIsStopped(t *testing.T) {
	server, err := bus.StartServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, config{Config: bus.Config{NATS: server.URL()}, Host: "host1"}, slog.New(slog.DiscardHandler))
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		reply, err := nc.Request("$SRV.PING.fulmar-monitor", nil, 10*time.Second)
		if err == nil {
			if !strings.Contains(string(reply.Data), `"host":"host1"`) {
				t.Errorf("it registered as %s", reply.Data)
			}
			break
		}
		if !errors.Is(err, nats.ErrNoResponders) {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it ended with %v", err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
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
