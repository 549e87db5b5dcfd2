package nat

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"fulmar/firewall/nstest"
)

func TestTheSecondWaitsForTheFirst(t *testing.T) {
	name := "@" + t.Name()
	first, err := waitAlone(t.Context(), name, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	got, logged := make(chan io.Closer, 1), make(chan struct{}, 1)
	go func() {
		second, err := waitAlone(t.Context(), name, slog.New(slog.NewTextHandler(io.MultiWriter(&text, signal(logged)), nil)))
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	<-logged
	if want := fmt.Sprintf("pid=%d", os.Getpid()); !strings.Contains(text.String(), want) {
		t.Errorf("it said %q, not %s", text.String(), want)
	}
	select {
	case <-got:
		t.Fatal("it did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case second := <-got:
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for ever")
	}
}

type signal chan struct{}

func (s signal) Write(p []byte) (int, error) {
	s <- struct{}{}
	return len(p), nil
}

func TestWaitingEnds(t *testing.T) {
	name := "@" + t.Name()
	first, err := waitAlone(t.Context(), name, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithCancel(t.Context())
	logged := make(chan struct{}, 1)
	go func() {
		<-logged
		cancel()
	}()
	second, err := waitAlone(ctx, name, slog.New(slog.NewTextHandler(signal(logged), nil)))
	if second != nil || err != nil {
		t.Errorf("got %v, %v", second, err)
	}
}

func TestEachNetworkNamespaceHasItsOwnLock(t *testing.T) {
	name := "@" + t.Name()
	here, err := waitAlone(t.Context(), name, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	if err := nstest.New(t).Do(func() error {
		there, err := waitAlone(t.Context(), name, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return there.Close()
	}); err != nil {
		t.Fatal(err)
	}
}
