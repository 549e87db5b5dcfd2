package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vishvananda/netlink"

	"fulmar/e2e/lab"
)

const (
	floorBridge  = "floor0"
	floorGateway = "10.81.0.1"
	floorPrefix  = "/16"
	ticks        = 100             // a second, of /proc/PID/stat
	settle       = 3 * time.Second // for what the deployments before have left to do
)

// floors measures what no way to deploy can be faster than.
func (m *measure) floors(ctx context.Context) error {
	fmt.Printf("## Floors\n\n| what | median | p99 |\n|---|---|---|\n")
	for _, f := range []struct {
		what string
		once func(context.Context, int) (time.Duration, error)
	}{
		{"bare `fulmar-spt hello.spt` on a tap that is there: exec to the first HTTP answer", m.bareExec},
		{"one publish with its acknowledgement, synced to disk", m.onePublish},
		{"one `iptables -I` of one rule", func(ctx context.Context, i int) (time.Duration, error) {
			return timed(ctx, "iptables", "-t", "nat", "-I", "FLOOR", "-p", "tcp", "--dport", strconv.Itoa(1000+i), "-j", "DNAT", "--to-destination", "10.81.0.2:80")
		}},
	} {
		if _, err := timed(ctx, "iptables", "-t", "nat", "-N", "FLOOR"); err != nil {
			return err
		}
		var all []time.Duration
		for i := range m.config.FloorRuns {
			d, err := f.once(ctx, i)
			if err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
			all = append(all, d)
		}
		fmt.Printf("| %s | %s | %s |\n", f.what, ms(quantile(all, .5)), ms(quantile(all, .99)))
		for _, undo := range [][]string{{"-t", "nat", "-F", "FLOOR"}, {"-t", "nat", "-X", "FLOOR"}} {
			if _, err := timed(ctx, "iptables", undo...); err != nil {
				return err
			}
		}
	}
	fmt.Println()
	return nil
}

func timed(ctx context.Context, name string, args ...string) (time.Duration, error) {
	begin := time.Now()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return time.Since(begin), nil
}

func (m *measure) onePublish(ctx context.Context, _ int) (time.Duration, error) {
	const name = "BENCH"
	if _, err := m.bus.JS.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{"bench"}}); err != nil {
		return 0, err
	}
	begin := time.Now()
	_, err := m.bus.JS.Publish(ctx, "bench", make([]byte, 1024))
	return time.Since(begin), err
}

// bareExec runs hello by the tender alone and asks it until it answers.
func (m *measure) bareExec(ctx context.Context, i int) (time.Duration, error) {
	tap := fmt.Sprintf("floor-t%d", i)
	if err := floorTap(tap); err != nil {
		return 0, err
	}
	address := netip.AddrFrom4([4]byte{10, 81, byte(i / 250), byte(2 + i%250)}) // not one that the kernel knows already
	cmd := exec.CommandContext(ctx, filepath.Join(m.lab.Bin, "fulmar-spt"), "--mem="+strconv.Itoa(memory), "--net:service="+tap, "--", m.image,
		"--ipv4="+address.String()+floorPrefix, "--ipv4-gateway="+floorGateway)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err := lab.FirstAnswer(ctx, netip.AddrPortFrom(address, 80))
	took := time.Since(begin)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	link, lerr := netlink.LinkByName(tap)
	if lerr == nil {
		lerr = netlink.LinkDel(link)
	}
	if err == nil {
		err = lerr
	}
	return took, err
}

// floorTap makes a tap on a bridge of the floors.
func floorTap(name string) error {
	bridge, err := netlink.LinkByName(floorBridge)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = floorBridge
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		if bridge, err = netlink.LinkByName(floorBridge); err != nil {
			return err
		}
		address, err := netlink.ParseAddr(floorGateway + floorPrefix)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(bridge, address); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(bridge); err != nil {
			return err
		}
		return errors.Join(keepUp(bridge), floorTap(name))
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(tap, bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(tap)
}

// keepUp gives a bridge a port for good: one that gets its first port takes a while to be up again, as no bridge with
// anything live on it does.
func keepUp(bridge netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "floor-up", bridge.Attrs().Index
	port := &netlink.Veth{LinkAttrs: attrs, PeerName: "floor-peer"}
	if err := netlink.LinkAdd(port); err != nil {
		return err
	}
	peer, err := netlink.LinkByName(port.PeerName)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(port), netlink.LinkSetARPOff(peer), netlink.LinkSetUp(peer))
}

// idle measures what `fulmar up`, with the bus, the host and all services in it, costs while nothing happens.
func (m *measure) idle(ctx context.Context) (string, error) {
	if err := pause(ctx, settle); err != nil {
		return "", err
	}
	before, err := cpuTime(m.up)
	if err != nil {
		return "", err
	}
	if err := pause(ctx, time.Duration(m.config.IdleTime)*time.Second); err != nil {
		return "", err
	}
	after, err := cpuTime(m.up)
	if err != nil {
		return "", err
	}
	memory, err := resident(m.up)
	return fmt.Sprintf("| %d | %.2f %% | %d MB |\n", len(m.stacks), 100*(after-before).Seconds()/float64(m.config.IdleTime), memory>>20), err
}

// pause lets time pass.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// cpuTime is the time that a process has used, user and system.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / ticks, err
}

// resident is the memory of a process, in bytes.
func resident(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	return pages * os.Getpagesize(), err
}
