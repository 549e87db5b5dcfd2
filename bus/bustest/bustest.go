// Package bustest gives tests a real bus: the nats-server in process, with JetStream on disk and no port.
package bustest

import (
	"context"
	"sync"
	"testing"

	"fulmar/bus"
)

// Server starts a server whose data lasts as long as the test.
func Server(tb testing.TB) *bus.Server {
	tb.Helper()
	s, err := bus.StartServer(tb.TempDir(), "")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Stop)
	return s
}

// Open gives a service its own connection to a server.
func Open(tb testing.TB, s *bus.Server, o bus.Options) *bus.Bus {
	tb.Helper()
	nc, err := s.Connect(o.Service)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	b, err := bus.Open(tb.Context(), nc, o)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Bus gives a service a server of its own.
func Bus(tb testing.TB, service, host string) *bus.Bus {
	tb.Helper()
	return Open(tb, Server(tb), bus.Options{Service: service, Host: host})
}

// Run runs a service until the test ends, or until stop is called, which waits for its end.
func Run(tb testing.TB, run func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("it ended with %v", err)
		}
	})
	tb.Cleanup(stop)
	return stop
}
