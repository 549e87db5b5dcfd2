package main

import (
	"context"
	"strings"
	"sync"
	"testing"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// spoil writes garbage for a record.
func (w *world) spoil(bucket, key string) {
	w.t.Helper()
	kv, err := w.bus.JS.KeyValue(w.t.Context(), bucket)
	if err == nil {
		_, err = kv.Put(w.t.Context(), key, []byte("garbage"))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// newSpoiledWorld has one thing of each kind, and garbage beside each.
func newSpoiledWorld(t *testing.T) *world {
	t.Helper()
	w := newQuietWorld(t)
	ctx := t.Context()
	head := &fulmarv1.Head{Stack: "web", Newest: 1, Deployments: []*fulmarv1.HeadDeployment{{
		Generation: 1, State: fulmarv1.State_STATE_LIVE, Host: "h1", Content: &fulmarv1.Content{Network: "dmz", Units: []*fulmarv1.UnitSpec{{Name: "web"}}},
		Instances: []*fulmarv1.Instance{{Unit: "web", Name: "web.web.1", Address: "10.9.0.2"}},
	}}}
	watched := &fulmarv1.Watch{Stack: "web", Sources: []*fulmarv1.WatchedSource{{Unit: "web", Source: "git+https://git.example/web"}}, Request: &fulmarv1.DeployRequest{}}
	for _, err := range []error{
		w.bus.Heads.Put(ctx, "web", head, 0),
		w.bus.Hosts.Put(ctx, "h1", &fulmarv1.Host{Name: "h1", Instances: []*fulmarv1.HostInstance{{Name: "web.web.1", Running: true}}}, 0),
		w.bus.Networks.Put(ctx, "dmz", &fulmarv1.Network{Name: "dmz", Host: "h1", Bridge: "br0", Prefix: "10.9.0.0/24", Gateway: "10.9.0.1"}, 0),
		w.bus.Leases.Put(ctx, "dmz.10.9.0.2", &fulmarv1.Lease{Instance: "web.web.1"}, 0),
		w.bus.Watches.Put(ctx, "web", watched, 0),
		w.bus.Say(ctx, &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: &fulmarv1.Deployment{Stack: "web", Generation: 1}}, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for bucket, key := range map[string]string{
		messages.HeadBucket: "bad", messages.HostBucket: "bad", messages.NetworkBucket: "bad", messages.LeaseBucket: "dmz.10.9.0.66", messages.WatchBucket: "bad",
	} {
		w.spoil(bucket, key)
	}
	for _, subject := range []string{"fulmar.event.gar.99.accepted._", "fulmar.event.web.1.unhealthy.h1.web", "fulmar.event.web.1.nonsense._"} {
		if _, err := w.bus.JS.Publish(ctx, subject, []byte("garbage")); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func TestWhatCannotBeReadIsToldAndLeftOut(t *testing.T) {
	w := newSpoiledWorld(t)
	for line, c := range map[string]struct{ says, tells []string }{
		"ps":           {[]string{"web-1", "web.web.1"}, []string{"record bad of bucket fulmar-heads cannot be read", "record bad of bucket fulmar-hosts cannot be read"}},
		"ps --json":    {[]string{`"stack":"web"`}, []string{"record bad of bucket fulmar-heads", "record bad of bucket fulmar-hosts"}},
		"describe web": {[]string{"stack web", "accepted"}, []string{"record bad of bucket fulmar-hosts", "last event of web-1", "event 3 on fulmar.event.web.1.unhealthy.h1.web cannot be read", "event 4 cannot be read"}},
		"events":       {[]string{"web-1", "accepted"}, []string{"event 2 on fulmar.event.gar.99.accepted._ cannot be read", "event 3 on", "event 4 cannot be read"}},
		"lease ls":     {[]string{"10.9.0.2", "web.web.1"}, []string{"record dmz.10.9.0.66 of bucket fulmar-leases cannot be read"}},
		"network ls":   {[]string{"dmz", "10.9.0.0/24"}, []string{"record bad of bucket fulmar-networks cannot be read"}},
		"watch ls":     {[]string{"git+https://git.example/web"}, []string{"record bad of bucket fulmar-watches cannot be read"}},
	} {
		t.Run(line, func(t *testing.T) {
			status, out, errout := w.run(strings.Fields(line)...)
			if status != 0 {
				t.Errorf("status %d", status)
			}
			for _, want := range c.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
			for _, want := range c.tells {
				if !strings.Contains(errout, want) {
					t.Errorf("it does not tell %q", want)
				}
			}
			if lines := strings.Count(errout, "\n"); lines != len(c.tells) || strings.Count(errout, "; it is left out\n") != lines {
				t.Errorf("it does not tell of %d in a sentence each:\n%s", len(c.tells), errout)
			}
		})
	}
	if status, _, errout := w.run("describe", "bad"); status != 1 || !strings.Contains(errout, "record bad of bucket fulmar-heads cannot be read") {
		t.Errorf("what was asked for cannot be read: status %d: %s", status, errout)
	}
}

// lines gives what is written to it, a line at a time.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func TestFollowingGoesOnAfterWhatCannotBeRead(t *testing.T) {
	w := newSpoiledWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, errout := make(lines, 100), make(lines, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		if status := execute(ctx, []string{"--nats", w.url, "events", "-f"}, out, errout); status != 0 {
			t.Errorf("status %d", status)
		}
	})
	for range 3 {
		if told := <-errout; !strings.Contains(told, "cannot be read") {
			t.Errorf("it tells %s", told)
		}
	}
	if err := w.bus.Say(ctx, &fulmarv1.Event{Verb: string(messages.Accepted), Deployment: &fulmarv1.Deployment{Stack: "dns", Generation: 2}}, 0); err != nil {
		t.Fatal(err)
	}
	for line := ""; !strings.Contains(line, "dns-2"); {
		line = <-out
	}
	cancel()
	wg.Wait()
}

func TestANetworkThatCannotBeReadIsRemovedOrReplaced(t *testing.T) {
	w := newSpoiledWorld(t)
	if status, _, errout := w.run("network", "rm", "bad"); status != 0 || errout != "" {
		t.Errorf("status %d: %s", status, errout)
	}
	if _, _, errout := w.run("network", "ls"); errout != "" {
		t.Errorf("it is still there: %s", errout)
	}
	w.spoil(messages.NetworkBucket, "dmz") // which is used, and must be as it was
	if status, _, errout := w.run("network", "rm", "dmz"); status != 1 || !strings.Contains(errout, "stack web uses it") {
		t.Errorf("status %d: %s", status, errout)
	}
	if status, _, errout := w.run("network", "add", "dmz", "10.9.0.1/24", "--bridge", "br0", "--host", "h1"); status != 0 {
		t.Errorf("status %d: %s", status, errout)
	}
	if _, out, _ := w.run("network", "ls"); !strings.Contains(out, "10.9.0.0/24") {
		t.Errorf("it is not written anew:\n%s", out)
	}
}

// TestANetworkIsUsedByAHeadThatCannotBeRead goes by the leases.
func TestANetworkIsUsedByAHeadThatCannotBeRead(t *testing.T) {
	w := newSpoiledWorld(t)
	w.spoil(messages.HeadBucket, "web")
	if status, _, errout := w.run("network", "rm", "dmz"); status != 1 || !strings.Contains(errout, "stack web, whose head cannot be read, holds an address of it") {
		t.Errorf("status %d: %s", status, errout)
	}
	_, rev, err := w.bus.Leases.Get(t.Context(), "dmz.10.9.0.2")
	if err == nil {
		err = w.bus.Leases.Delete(t.Context(), "dmz.10.9.0.2", rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	if status, _, errout := w.run("network", "rm", "dmz"); status != 0 {
		t.Errorf("status %d: %s", status, errout)
	}
}
