package hello_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The flags of a segment.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// A segment is TCP as a peer sends and sees it.
type segment struct {
	seq, ack uint32
	flags    uint8
	wnd      uint16
	mss      uint16 // 0: no option
	data     string
}

func (s segment) String() string {
	return fmt.Sprintf("{seq %d ack %d flags %#x wnd %d mss %d %q}", s.seq, s.ack, s.flags, s.wnd, s.mss, s.data)
}

// A peer is one end of a TCP connection made by hand, at an address that the
// kernel beside it does not have: it can do what a kernel never would.
type peer struct {
	t    testing.TB
	file *os.File // a packet socket on the tap
	mac  net.HardwareAddr
	ip   netip.Addr
	port uint16
	to   uint16 // the guest's port
	// corrupt is added to the next segment's checksum.
	corrupt uint16
}

// newPeer makes a peer and lets the guest ask for its MAC address.
func (l *lab) newPeer(ip string) *peer {
	l.t.Helper()
	p := &peer{t: l.t, ip: netip.MustParseAddr(ip), port: 40000, to: 80}
	err := l.do(func() error {
		tap, err := net.InterfaceByName(tapName)
		if err != nil {
			return err
		}
		p.mac = tap.HardwareAddr
		all := int(htons(unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
		if err != nil {
			return err
		}
		p.file = os.NewFile(uintptr(fd), "packet socket")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: tap.Index})
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = p.file.Close() })
	return p
}

func htons(x uint16) uint16 {
	return x<<8 | x>>8
}

// checksum is the Internet checksum.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for i, b := range part {
			sum += uint32(b) << (8 * (1 - i%2))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// tcp encodes a segment from a source.
func (p *peer) tcp(src netip.AddrPort, s segment) []byte {
	header := 20
	if s.mss != 0 {
		header = 24
	}
	b := make([]byte, header, header+len(s.data))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], p.to)
	binary.BigEndian.PutUint32(b[4:], s.seq)
	binary.BigEndian.PutUint32(b[8:], s.ack)
	b[12], b[13] = byte(header/4<<4), s.flags
	binary.BigEndian.PutUint16(b[14:], s.wnd)
	if s.mss != 0 {
		b[20], b[21] = 2, 4
		binary.BigEndian.PutUint16(b[22:], s.mss)
	}
	b = append(b, s.data...)
	from, to := src.Addr().As4(), netip.MustParseAddr(guestIP).As4()
	pseudo := []byte{0, 6, byte(len(b) >> 8), byte(len(b))}
	binary.BigEndian.PutUint16(b[16:], checksum(from[:], to[:], pseudo, b)+p.corrupt)
	return b
}

// frame puts TCP into IPv4 into Ethernet.
func (p *peer) frame(src netip.Addr, tcp []byte) []byte {
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
	from, to := src.As4(), netip.MustParseAddr(guestIP).As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	frame := append(append([]byte{}, guestMAC...), p.mac...)
	return append(append(append(frame, 8, 0), ip...), tcp...)
}

// sendFrom sends a segment from any source.
func (p *peer) sendFrom(src netip.AddrPort, s segment) {
	p.t.Helper()
	if _, err := p.file.Write(p.frame(src.Addr(), p.tcp(src, s))); err != nil {
		p.t.Fatal(err)
	}
}

// send sends a segment.
func (p *peer) send(s segment) {
	p.t.Helper()
	p.sendFrom(netip.AddrPortFrom(p.ip, p.port), s)
}

// next returns the next segment from the guest, answering ARP meanwhile.
func (p *peer) next(deadline time.Time) (segment, error) {
	buffer := make([]byte, 2000)
	for {
		if err := p.file.SetReadDeadline(deadline); err != nil {
			return segment{}, err
		}
		n, err := p.file.Read(buffer)
		if err != nil {
			return segment{}, err
		}
		frame := buffer[:n]
		if n < 42 || string(frame[6:12]) != string(guestMAC) {
			continue // what we and the kernel send comes by, too
		}
		if frame[0] != 0xff && string(frame[:6]) != string(p.mac) {
			continue
		}
		if frame[12] == 8 && frame[13] == 6 {
			p.answerARP(frame)
			continue
		}
		if s, ok := p.decode(frame); ok {
			return s, nil
		}
	}
}

func (p *peer) answerARP(frame []byte) {
	self := p.ip.As4()
	if frame[21] != 1 || string(frame[38:42]) != string(self[:]) {
		return
	}
	reply := append(append(append([]byte{}, guestMAC...), p.mac...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	reply = append(append(reply, p.mac...), self[:]...)
	reply = append(reply, frame[22:32]...)
	if _, err := p.file.Write(reply); err != nil {
		p.t.Error(err)
	}
}

// decode takes a segment for this peer out of a frame, and checks its
// checksums.
func (p *peer) decode(frame []byte) (segment, bool) {
	self := p.ip.As4()
	if len(frame) < 54 || frame[12] != 8 || frame[13] != 0 || frame[23] != 6 || string(frame[30:34]) != string(self[:]) {
		return segment{}, false
	}
	ip := frame[14:]
	b := ip[20:binary.BigEndian.Uint16(ip[2:])]
	if binary.BigEndian.Uint16(b[2:]) != p.port {
		return segment{}, false
	}
	pseudo := []byte{0, 6, byte(len(b) >> 8), byte(len(b))}
	if checksum(ip[:20]) != 0 || checksum(ip[12:20], pseudo, b) != 0 {
		p.t.Errorf("wrong checksum in % x", ip)
	}
	header := int(b[12]>>4) * 4
	s := segment{
		seq:   binary.BigEndian.Uint32(b[4:]),
		ack:   binary.BigEndian.Uint32(b[8:]),
		flags: b[13],
		wnd:   binary.BigEndian.Uint16(b[14:]),
		data:  string(b[header:]),
	}
	if header == 24 && b[20] == 2 {
		s.mss = binary.BigEndian.Uint16(b[22:])
	}
	return s, true
}

// receive returns the next segment that the test needs.
func (p *peer) receive(ctx context.Context) segment {
	p.t.Helper()
	deadline, _ := ctx.Deadline()
	s, err := p.next(deadline)
	if err != nil {
		p.t.Fatal("no segment came: ", err)
	}
	return s
}

// expect receives a segment and compares all but its window and its options.
func (p *peer) expect(ctx context.Context, want segment) {
	p.t.Helper()
	if got := p.receive(ctx); !got.is(want) {
		p.t.Fatalf("got %v, want %v", got, want)
	}
}

// expectAfter is expect where the guest may repeat another segment first: it
// hears too late that the peer has it if the machine is slow.
func (p *peer) expectAfter(ctx context.Context, other, want segment) {
	p.t.Helper()
	got := p.receive(ctx)
	for got.is(other) {
		got = p.receive(ctx)
	}
	if !got.is(want) {
		p.t.Fatalf("got %v, want %v", got, want)
	}
}

// is compares all but the window and the options.
func (s segment) is(want segment) bool {
	s.wnd, s.mss = want.wnd, want.mss
	return s == want
}

// expectNothing sees that the guest is silent for a while.
func (p *peer) expectNothing(while time.Duration) {
	p.t.Helper()
	if s, err := p.next(time.Now().Add(while)); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("got %v %v, want nothing", s, err)
	}
}

// open makes a connection with a first sequence number, and returns that of
// the guest's first byte. The peer's is seq+1.
func (p *peer) open(ctx context.Context, seq uint32, mss uint16) uint32 {
	p.t.Helper()
	p.send(segment{seq: seq, flags: syn, wnd: 60000, mss: mss})
	got := p.receive(ctx)
	if got.flags != syn|ack || got.ack != seq+1 || got.mss != 1460 {
		p.t.Fatalf("answer to SYN %d: %v", seq, got)
	}
	p.send(segment{seq: seq + 1, ack: got.seq + 1, flags: ack, wnd: 60000})
	return got.seq + 1
}
