package firewall

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestForbiddingNamesTheChainsOfOthersThatDrop(t *testing.T) {
	k := freshKernel(t, IPTables)
	apply(t, k, someWant())
	if got, err := Forbidding(); err != nil || len(got) > 0 {
		t.Errorf("of our own: %v, %v", got, err)
	}
	run(t, "iptables", "-P", "FORWARD", "DROP") // our hook stands before it
	t.Cleanup(func() { run(t, "iptables", "-P", "FORWARD", "ACCEPT") })
	run(t, "nft", "add table inet wall; add chain inet wall over { type filter hook forward priority 0; policy drop; }; "+
		"add chain inet wall into { type filter hook input priority 0; policy drop; }; add chain inet wall open { type filter hook forward priority 1; policy accept; }; add chain inet wall plain")
	t.Cleanup(func() { run(t, "nft", "delete table inet wall") })
	got, err := Forbidding()
	if diff := cmp.Diff([]string{"inet wall over"}, got); err != nil || diff != "" {
		t.Errorf("%v, forbidding (-want +got):\n%s", err, diff)
	}
}

func TestWatchTellsWhoChangedSomething(t *testing.T) {
	k := freshKernel(t, IPTables)
	ctx, cancel := context.WithCancel(t.Context())
	listening, pids, done := make(chan struct{}), make(chan int, 100), make(chan error)
	go func() { done <- Watch(ctx, func() { close(listening) }, func(pid int) { pids <- pid }) }()
	<-listening
	if err := k.commit(ctx, "*nat\n:FULMAR - [0:0]\nCOMMIT\n", change{}); err != nil {
		t.Fatal(err)
	}
	if pid := next(t, pids); !k.Own(pid) {
		t.Errorf("our own change was by process %d, not one of ours", pid)
	}
	cmd := exec.Command("iptables", "-t", "nat", "-A", "FULMAR", "-j", "RETURN")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if pid := next(t, pids); pid != cmd.Process.Pid || k.Own(pid) {
		t.Errorf("another's change was by process %d, want %d", pid, cmd.Process.Pid)
	}
	own, err := NewKernel(NFTables)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	plan := planFor(t, own, someWant())
	plan.Install = "" // what is left is about the table alone
	if err := own.Install(ctx, plan); err != nil {
		t.Fatal(err)
	}
	if pid := next(t, pids); !own.Own(pid) {
		t.Errorf("a change of our own table was by %d, not by a thread of this process", pid)
	}
	run(t, "nft", "add table bridge other; add chain bridge other c; add rule bridge other c accept; delete table bridge other")
	if _, err := k.Read(ctx); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("iptables", "-t", "nat", "-A", "FULMAR", "-j", "RETURN")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if pid := next(t, pids); pid != cmd.Process.Pid {
		t.Errorf("reading, or a change that is about bridges, was told: by process %d, not %d", pid, cmd.Process.Pid)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func next(t *testing.T, pids <-chan int) int {
	t.Helper()
	select {
	case pid := <-pids:
		return pid
	case <-time.After(5 * time.Second):
		t.Fatal("no change was told")
		return 0
	}
}
