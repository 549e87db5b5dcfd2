package firewall

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestARefusedChangeSaysWhyAndTheNextIsMade(t *testing.T) {
	k := freshKernel(t, IPTables)
	for range 2 {
		err := k.commit(t.Context(), "*nat\n-A NOWHERE -j RETURN\nCOMMIT\n", change{})
		if err == nil || !strings.Contains(err.Error(), "iptables-restore") || !strings.Contains(err.Error(), "line") {
			t.Errorf("got %v", err)
		}
		apply(t, k, someWant())
	}
}

func TestARestorerThatWasKilledIsReplaced(t *testing.T) {
	k := freshKernel(t, IPTables)
	apply(t, k, someWant())
	if err := k.restorer.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.commit(t.Context(), "*nat\n:FULMAR-8 - [0:0]\nCOMMIT\n", change{}); err == nil {
		t.Error("what nobody made was made")
	}
	apply(t, k, someWant())
}

func TestAnIptablesThatDoesNotAnswerIsRunForEachChange(t *testing.T) {
	k := freshKernel(t, IPTables)
	quiet := filepath.Join(t.TempDir(), "iptables-restore")
	if err := os.WriteFile(quiet, []byte("#!/bin/sh\nexec iptables-restore \"$@\" >/dev/null\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	k.restore, k.probe = quiet, 100*time.Millisecond
	apply(t, k, someWant())
	if !k.mute {
		t.Error("it was taken to answer")
	}
}

func TestAChangeThatTakesTooLongIsGivenUp(t *testing.T) {
	eachBackend(t, func(t *testing.T, k *Kernel) {
		input, c := "*nat\n:FULMAR-8 - [0:0]\nCOMMIT\n", change{}
		if k.backend == NFTables {
			input, c = "", change{anew: true}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 { // it may come through, and the next one must not be given up for it
			if err := k.commit(ctx, input, c); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if err := k.commit(t.Context(), input, c); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, k, someWant())
	})
}

// ending ends something when there is something to read.
type ending struct {
	io.Reader
	end func()
}

func (e ending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	e.end()
	return n, err
}

func TestAChangeWhoseTimeEndsWithItsAnswerSpoilsNotTheNext(t *testing.T) {
	k := freshKernel(t, IPTables)
	apply(t, k, someWant())
	ctx, cancel := context.WithCancel(t.Context())
	k.restorer.out = bufio.NewReader(ending{k.restorer.out, cancel})
	if err := k.commit(ctx, "*nat\n:FULMAR-8 - [0:0]\nCOMMIT\n", change{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	apply(t, k, someWant())
}
