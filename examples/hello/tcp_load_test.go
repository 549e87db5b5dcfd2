package hello_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Whatever comes, in whatever order, the guest lives and serves.
func TestRandomSegments(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	random := rand.New(rand.NewPCG(3, 4))
	pieces := []string{"", "", request, request[:7], request[7:], closing, "GET /sleep?ms=1 HTTP/1.1\r\nHost: a\r\n\r\n", strings.Repeat("z", 1460)}
	for i := range 100 {
		p.port = uint16(20000 + i)
		seq := p.open(ctx, random.Uint32(), uint16(random.IntN(2000)))
		next := uint32(0)
		for range 50 {
			s := segment{
				seq:   next + uint32(random.IntN(3000)) - 1000,
				ack:   seq + uint32(random.IntN(300)) - 100,
				flags: uint8(random.IntN(32)) &^ syn,
				wnd:   uint16(random.IntN(3) * 500),
				data:  pieces[random.IntN(len(pieces))],
			}
			if random.IntN(20) == 0 {
				s.flags |= syn
			}
			if random.IntN(2) == 0 { // most likely in order, so that there is something to upset
				s.seq, s.flags = next, ack
			}
			p.send(s)
			if got, err := p.next(time.Now().Add(time.Millisecond)); err == nil {
				next, seq = got.ack, got.seq+uint32(len(got.data))
			}
		}
	}
	if err := expect(ctx, l.client(1), "/", 200, "hello\n"); err != nil {
		t.Error(err)
	}
}

func TestHalfOpenConnections(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	random := rand.New(rand.NewPCG(1, 2))
	client := l.client(1)
	for i := range 20_000 {
		// From strangers behind the gateway and from addresses beside us that nobody has.
		src := netip.AddrFrom4([4]byte{198, 18, byte(random.Uint32()), byte(random.Uint32())})
		if i%4 == 0 {
			src = netip.AddrFrom4([4]byte{10, 9, 0, byte(100 + random.IntN(150))})
		}
		p.sendFrom(netip.AddrPortFrom(src, uint16(1024+random.IntN(60000))), segment{seq: random.Uint32(), flags: syn, wnd: 1000})
		if i%1000 != 0 {
			continue
		}
		if err := expect(ctx, client, "/", 200, "hello\n"); err != nil {
			t.Fatal(err)
		}
		client.CloseIdleConnections()
	}
	if err := expect(ctx, client, "/", 200, "hello\n"); err != nil {
		t.Fatal(err)
	}
}

func TestTimeWaitKeepsNobodyOut(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	err := l.do(func() error {
		for range 1024 {
			if err := oneRequest(ctx, "GET / HTTP/1.0\r\n\r\n", "hello\n"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l.newPeer("10.9.0.50").open(ctx, 1000, 1460) // with one SYN
}

func TestFullTable(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	first := l.connect(ctx, "tcp", guestAddr)
	for range 1023 {
		l.connect(ctx, "tcp", guestAddr)
	}
	p := l.newPeer("10.9.0.50")
	p.send(segment{seq: 1000, flags: syn, wnd: 60000, mss: 1460})
	p.expectNothing(100 * time.Millisecond) // neither taken nor refused
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		p.send(segment{seq: 1000, flags: syn, wnd: 60000, mss: 1460})
		if s, err := p.next(time.Now().Add(100 * time.Millisecond)); err == nil && s.flags == syn|ack {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("no place became free")
		}
	}
}
