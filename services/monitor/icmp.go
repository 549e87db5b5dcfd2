package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	protocolICMP = 1
	maxEcho      = 1500
)

// pinger sends echo requests and hears the answers, all over one socket: a datagram socket if net.ipv4.ping_group_range
// allows it, else a raw one, which takes CAP_NET_RAW.
type pinger struct {
	id     int
	conn   net.PacketConn
	fd     syscall.RawConn
	denied error

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]waiter
}

// waiter is an echo request that waits for its answer.
type waiter struct {
	address  netip.Addr
	answered chan struct{}
}

// newPinger makes a pinger whose requests another one on the host does not take for its own.
func newPinger() *pinger {
	return &pinger{id: rand.N(1 << 16), last: rand.Uint64(), waiting: map[uint64]waiter{}}
}

// open makes the socket. Without one every ping fails with the reason.
func (p *pinger) open() error {
	conn, err := echoSocket(unix.SOCK_DGRAM, p.id)
	if err != nil {
		conn, err = echoSocket(unix.SOCK_RAW, p.id)
	}
	if err != nil {
		p.denied = fmt.Errorf("no socket for echo requests, which takes CAP_NET_RAW or a group within net.ipv4.ping_group_range: %w", plain(err))
		return p.denied
	}
	p.conn = conn
	p.fd, err = conn.(syscall.Conn).SyscallConn()
	return err
}

// echoSocket makes a socket of a kind that hears the answers to requests with an id, and no others, so that what others
// ping cannot crowd them out. With a datagram socket the kernel chooses the id and sees to that by itself.
func echoSocket(kind, id int) (net.PacketConn, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close()
	if kind == unix.SOCK_RAW {
		if err := filterEcho(fd, id); err != nil {
			return nil, fmt.Errorf("filter echo replies: %w", err)
		}
	}
	return net.FilePacketConn(f)
}

func filterEcho(fd, id int) error {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // the length of the IP header
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 3}, // type and code of an echo reply (RFC 792)
		bpf.LoadIndirect{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(id), SkipTrue: 1},
		bpf.RetConstant{Val: maxEcho},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, r := range program {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// run hears answers until ctx ends.
func (p *pinger) run(ctx context.Context) error {
	if p.conn == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = p.conn.Close() })() // there is nothing to lose
	buf := make([]byte, maxEcho)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("hear echo replies: %w", err)
		case err == nil:
			p.hear(buf[:n], from)
		}
	}
}

func (p *pinger) hear(packet []byte, from net.Addr) {
	m, err := icmp.ParseMessage(protocolICMP, packet)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || len(echo.Data) != 8 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	token := binary.BigEndian.Uint64(echo.Data)
	if w, ok := p.waiting[token]; ok && w.address == addressOf(from) {
		delete(p.waiting, token)
		close(w.answered)
	}
}

func addressOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip) // the zero address equals no unit's
	return addr.Unmap()
}

// ping sends an echo request and waits for its answer.
func (p *pinger) ping(ctx context.Context, to netip.Addr, timeout time.Duration) error {
	if p.conn == nil {
		return p.denied
	}
	token, answered := p.expect(to)
	defer p.forget(token)
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: p.id, Seq: int(token & 0xffff), Data: binary.BigEndian.AppendUint64(nil, token),
	}}
	packet, err := m.Marshal(nil)
	if err != nil {
		return fmt.Errorf("echo request: %w", err)
	}
	if err := p.send(packet, to); err != nil {
		return plain(err)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-answered:
		return nil
	case <-timer.C:
		return errNoAnswer
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send does not wait when the socket is full of requests to addresses that nobody has, so that those cannot hold up the
// others.
func (p *pinger) send(packet []byte, to netip.Addr) error {
	var sent error
	err := p.fd.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), packet, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.As4()})
		return true
	})
	if err != nil {
		return err
	}
	return sent
}

func (p *pinger) expect(to netip.Addr) (uint64, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	w := waiter{address: to, answered: make(chan struct{})}
	p.waiting[p.last] = w
	return p.last, w.answered
}

func (p *pinger) forget(token uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, token)
}

// icmpProbe pings.
type icmpProbe struct {
	pinger  *pinger
	address netip.Addr
}

func (p icmpProbe) ask(ctx context.Context, patience, _ time.Duration) error {
	return p.pinger.ping(ctx, p.address, patience)
}

func (icmpProbe) close() {}
