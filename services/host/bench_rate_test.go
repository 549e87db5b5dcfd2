package host_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
	"fulmar/solo5/solo5test"
)

// BenchmarkFrames measures frames of 64 bytes that a unikernel gets through its tap and sends back, 32 of them under way at a time. The floor is a
// program of two system calls a frame in its place.
func BenchmarkFrames(b *testing.B) {
	cfg := config(b)
	built(b, &cfg)
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil { // no frames but ours
		b.Fatal(err)
	}
	br := bridge(b)
	d := start(b, cfg).destroyAll(b)
	for target, path := range map[string]func(testing.TB, solo5test.Features) string{"spt": solo5test.BuildSPT, "hvt": solo5test.BuildHVT} {
		b.Run(target, func(b *testing.B) {
			image, err := os.ReadFile(path(b, solo5test.Features{Nets: 1}))
			if err != nil {
				b.Fatal(err)
			}
			n := name(b, target)
			d.create(b, n, unikernel(image, 1, "echo", "1000000000"))
			d.await(b, n, is("up"))
			exchange(b, br, albatross.MAC(n, "net0"))
			if err := d.Destroy(b.Context(), n); err != nil {
				b.Fatal(err)
			}
		})
	}
	b.Run("floor", func(b *testing.B) {
		exchange(b, br, echoingTap(b, br))
	})
}

// exchange sends frames to an address behind the bridge and waits until they are back.
func exchange(b *testing.B, br *netlink.Bridge, to net.HardwareAddr) {
	b.Helper()
	const etherType, window = 0x88b5, 32
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(etherType&0xff<<8|etherType>>8))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	link, err := netlink.LinkByIndex(br.Index)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherType&0xff<<8 | etherType>>8, Ifindex: br.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	}
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 64)
	copy(out, to)
	copy(out[6:], link.Attrs().HardwareAddr)
	out[12], out[13] = etherType>>8, etherType&0xff
	in := make([]byte, 2048)
	wait := func() {
		for {
			n, err := unix.Read(fd, in)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				b.Fatal("a frame did not come back: ", err)
			}
			if n >= 14 && bytes.Equal(in[6:12], to) {
				return
			}
		}
	}
	begin, sent, back := time.Now(), 0, 0
	for b.Loop() {
		if _, err := unix.Write(fd, out); err != nil {
			b.Fatal(err)
		}
		if sent++; sent-back >= window {
			wait()
			back++
		}
	}
	for ; back < sent; back++ {
		wait()
	}
	b.ReportMetric(float64(sent)/time.Since(begin).Seconds(), "frames/s")
}

// echoingTap is a tap whose frames a goroutine sends back.
func echoingTap(b *testing.B, br *netlink.Bridge) net.HardwareAddr {
	b.Helper()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "floor0"
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1}
	if err := netlink.LinkAdd(tap); err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetMaster(tap, br), netlink.LinkSetUp(tap)); err != nil {
		b.Fatal(err)
	}
	fd := int(tap.Fds[0].Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		frame := make([]byte, 2048)
		for {
			n, err := syscall.Read(fd, frame)
			if err != nil {
				return
			}
			if !bytes.Equal(frame[:6], mac) {
				continue
			}
			copy(frame, frame[6:12])
			copy(frame[6:], mac)
			if _, err := syscall.Write(fd, frame[:n]); err != nil {
				return
			}
		}
	}()
	b.Cleanup(func() {
		if err := netlink.LinkDel(tap); err != nil { // ends the read
			b.Error(err)
		}
		<-done
		_ = tap.Fds[0].Close()
	})
	return mac
}

// BenchmarkConsole measures the lines of 50 bytes that a subscriber gets of a unikernel that does nothing but say them. Host reads 1 MB a second of
// each at most, and what it does not read the unikernel loses.
func BenchmarkConsole(b *testing.B) {
	d := start(b, config(b)).destroyAll(b)
	n := name(b, "flood")
	d.create(b, n, unikernel(hosttest.Guest(b, 0), 0, "flood"))
	d.await(b, n, func(string) bool { return true })
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	lines := 0
	begin := time.Now()
	for b.Loop() {
		err := d.Subscribe(ctx, n, albatross.ConsoleSubscribe{}, func(albatross.ConsoleLine) error {
			if lines++; lines%20000 == 0 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(lines)/time.Since(begin).Seconds(), "lines/s")
	b.ReportMetric(0, "ns/op")
}
