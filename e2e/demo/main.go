// Command demo shows Fulmar's main job on real parts, in network namespaces of its own: hello is deployed, updated and
// rolled back under load, and retired. It ends with status 0 only if no request failed and nothing is left behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"fulmar/e2e/lab"
	"fulmar/examples/hello"
)

const (
	port = 8080
	rate = 500 // new connections a second

	cleanTime = 10 * time.Second // for rules, taps and control groups to go
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if err := lab.Enter(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fulmar-demo-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New(dir, filepath.Dir(self))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	say("a host and its clients, in network namespaces of their own; hello is built with gcc")
	image, err := hello.Build(ctx, dir)
	if err != nil {
		return err
	}
	up, err := l.Up()
	if err != nil {
		return err
	}
	return errors.Join(show(ctx, l, image), up.Stop())
}

// show is the demonstration.
func show(ctx context.Context, l *lab.Lab, image string) error {
	deploy := func(text string, more ...string) []string {
		return append(append([]string{"deploy", "web", image, "--port", fmt.Sprintf("%d:80", port), "--memory", "16"}, more...), lab.HelloArgs(text)...)
	}
	if err := fulmar(ctx, l, deploy("v1")...); err != nil {
		return err
	}
	say("load: %d new connections a second from the clients to %s:%d", rate, lab.HostAddr, port)
	load := l.Load(netip.AddrPortFrom(netip.MustParseAddr(lab.HostAddr), port), rate)
	err := updates(ctx, l, load, deploy("v2", "--wait"))
	result := load.Stop()
	if err != nil {
		return err
	}
	if err := fulmar(ctx, l, "retire", "web", "--wait"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	if err := l.Clean(ctx); err != nil {
		return err
	}
	for reason, n := range result.Errors {
		say("%d requests failed: %s", n, reason)
	}
	say("answers: %d by v1, %d by v2; the slowest took %.1f ms; packets sent again: %d", result.Bodies["v1"], result.Bodies["v2"],
		float64(result.Slowest.Microseconds())/1000, result.Resent)
	fmt.Printf("requests %d, failed %d\n", result.Requests, result.Failed)
	switch {
	case result.Failed > 0:
		return fmt.Errorf("%d requests failed", result.Failed)
	case result.Bodies["v1"] == 0 || result.Bodies["v2"] == 0:
		return fmt.Errorf("not both versions answered: %v", result.Bodies)
	}
	return result.Dropped()
}

// updates deploys the second version under load and rolls it back, and sees each of them answer.
func updates(ctx context.Context, l *lab.Lab, load *lab.Load, second []string) error {
	for _, step := range []struct {
		args []string
		body string
	}{{nil, "v1"}, {second, "v2"}, {[]string{"rollback", "web", "--wait"}, "v1"}} {
		before := load.Seen(step.body)
		if step.args != nil {
			if err := fulmar(ctx, l, step.args...); err != nil {
				return err
			}
		}
		err := lab.Until(ctx, func() error { // a second of it
			if seen := load.Seen(step.body); seen < before+rate {
				return fmt.Errorf("only %d answers by %s", seen-before, step.body)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func fulmar(ctx context.Context, l *lab.Lab, args ...string) error {
	fmt.Printf("$ fulmar %s %s ...\n", args[0], args[1])
	return l.FulmarTo(ctx, os.Stdout, os.Stderr, args...)
}

func say(format string, args ...any) { fmt.Printf("# "+format+"\n", args...) }
