package host_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

// statistics returns the first of each unikernel that is told of, until there are n.
func (d *daemon) statistics(t testing.TB, asked albatross.Name, n int) map[string]albatross.Stats {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	enough := errors.New("enough")
	all := make(map[string]albatross.Stats)
	err := d.SubscribeStats(ctx, asked, func(of albatross.Name, s albatross.Stats) error {
		if all[of.String()] = s; len(all) == n {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("statistics of %v: %v, after %v", asked, err, all)
	}
	return all
}

func TestStatistics(t *testing.T) {
	cfg := config(t)
	cfg.StatsEvery = 50 * time.Millisecond
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	busy, idle := name(t, "a:busy"), name(t, "a:b:idle")
	d.create(t, busy, unikernel(hosttest.Guest(t, 1), 1, "flood"))
	d.create(t, idle, unikernel(hosttest.Guest(t, 2), 2, "touch", "0"))
	d.await(t, idle, is("touched"))

	all := d.statistics(t, path(t, "a").Name(), 2)
	s := all["b:idle"]
	if s.Memory == nil || s.Memory.RSS < 6<<20>>12 || s.Memory.VSize < 8<<20 || s.Rusage.MaxRSS < s.Memory.RSS || s.Rusage.MinFlt < 6<<20>>12 {
		t.Errorf("memory of 8 MB, most of which was touched: %+v, %+v", s.Memory, s.Rusage)
	}
	if start := time.Unix(s.Memory.Start.Sec, 0); time.Since(start).Abs() > time.Minute {
		t.Errorf("started %v", start)
	}
	var got []albatross.Interface
	for _, i := range s.Interfaces {
		got = append(got, albatross.Interface{Bridge: i.Bridge, MTU: i.MTU, Flags: i.Flags & 1})
	}
	if diff := cmp.Diff([]albatross.Interface{{Bridge: "net0", MTU: 1500, Flags: 1}, {Bridge: "net1", MTU: 1500, Flags: 1}}, got); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}

	enough := errors.New("enough")
	var last int64
	told := 0
	for range 2 { // the second does not throw out the first, nor sees less
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := d.SubscribeStats(ctx, busy, func(of albatross.Name, s albatross.Stats) error {
			if told++; of != name(t, "busy") || s.Memory.Runtime < last {
				t.Errorf("statistics of %v with runtime %d after %d", of, s.Memory.Runtime, last)
			}
			if s.Memory.Runtime > last+100_000 && told > 2 {
				last = s.Memory.Runtime
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("a unikernel that works uses no time: %v after %d statistics", err, told)
		}
	}
}

// A unikernel that is not there has no statistics until it is, and none after it.
func TestStatisticsFollowAName(t *testing.T) {
	cfg := config(t)
	cfg.StatsEvery = 10 * time.Millisecond
	d := start(t, cfg)
	n := name(t, "later")
	conn := dial(t, cfg, albatross.StatsSocket)
	if err := albatross.WriteFrame(conn, mustMarshal(t, albatross.Wire{Header: albatross.Header{Sequence: 3, Name: n}, Payload: albatross.StatsSubscribe{}})); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, conn); got.Payload != albatross.Text("subscribed") || got.Sequence != 3 {
		t.Errorf("reply is %+v", got)
	}
	d.create(t, n, unikernel(hosttest.Guest(t, 0), 0, "wait"))
	if got := receive(t, conn); got.Sequence != 0 || got.Name != n {
		t.Errorf("data is of %+v", got.Header)
	}
	if err := d.Destroy(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil { // ends the subscription
		t.Fatal(err)
	}
	for {
		if _, err := albatross.ReadFrame(conn, 1<<20); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the subscription did not end with host")
			}
			return
		}
	}
}

func TestStatisticsOfOtherProcesses(t *testing.T) {
	cfg := config(t)
	cfg.StatsEvery = 10 * time.Millisecond
	d := start(t, cfg)
	say := func(n albatross.Name, c albatross.Command) albatross.Payload {
		t.Helper()
		return ask(t, cfg, albatross.StatsSocket, albatross.Wire{Header: albatross.Header{Name: n}, Payload: c}).Payload
	}
	extra := name(t, "extra")
	for what, c := range map[string]struct {
		got, want albatross.Payload
	}{
		"add":            {say(extra, albatross.StatsAdd{PID: os.Getpid(), Taps: []albatross.Tap{{Bridge: "service", Tap: "lo"}}}), albatross.Text("added")},
		"of no process":  {say(name(t, "none"), albatross.StatsAdd{PID: 1 << 22}), albatross.Text("added")},
		"of a path":      {say(path(t, "a").Name(), albatross.StatsAdd{PID: 1}), albatross.Failure("path used instead of name")},
		"another daemon": {say(extra, albatross.StatsInitial{}), albatross.Failure("unexpected message initial")},
		"a foreign one":  {say(extra, albatross.PolicyInfo{}), albatross.Failure("unexpected command")},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	all := d.statistics(t, albatross.Name{}, 1)
	if s, there := all[extra.String()]; !there || s.Rusage.MinFlt == 0 || len(s.Interfaces) != 1 || s.Interfaces[0].Bridge != "service" {
		t.Errorf("statistics are %+v", all)
	}
	for range 2 {
		if got := say(extra, albatross.StatsRemove{}); got != albatross.Text("removed") {
			t.Errorf("remove: %v", got)
		}
	}
}
