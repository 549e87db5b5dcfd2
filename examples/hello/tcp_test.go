package hello_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const (
	request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	closing = "GET / HTTP/1.0\r\n\r\n"
	reqLen  = uint32(len(request))
)

// answerTo is what the guest says to a request, up to its body.
func answerTo(body string) string {
	return "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n\r\n" + body
}

var answer = answerTo("hello\n")

func TestRefusesUnknown(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	p.send(segment{seq: 100, ack: 200, flags: ack, wnd: 1000, data: "x"})
	p.expect(ctx, segment{seq: 200, flags: rst})
	p.send(segment{seq: 100, flags: fin, wnd: 1000, data: "xyz"})
	p.expect(ctx, segment{ack: 104, flags: rst | ack})
	p.send(segment{seq: 100, ack: 200, flags: rst})
	p.expectNothing(100 * time.Millisecond)
	p.to = 81
	p.send(segment{seq: 100, flags: syn, wnd: 1000})
	p.expect(ctx, segment{ack: 101, flags: rst | ack})
}

func TestWrongChecksumIsDropped(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	p.corrupt = 1
	p.send(segment{seq: 1, flags: syn, wnd: 1000})
	p.expectNothing(100 * time.Millisecond)
	p.corrupt = 0
	p.open(ctx, 1, 1460)
}

func TestSegmentSize(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx, "--hello="+strings.Repeat("m", 1000))
	for _, c := range []struct{ mss, most int }{{0, 536}, {300, 300}, {536, 536}, {1000, 1000}, {9000, 1460}} {
		p := l.newPeer("10.9.0.50")
		p.port += uint16(c.mss)
		seq := p.open(ctx, 1<<31-10, uint16(c.mss)) // numbers that soon change their sign
		p.send(segment{seq: 1<<31 - 9, ack: seq, flags: ack | psh, wnd: 60000, data: request})
		for got := 0; got < 1000; {
			s := p.receive(ctx)
			if len(s.data) > c.most || s.seq != seq+uint32(got) {
				t.Fatalf("with MSS %d: %d bytes at %d", c.mss, len(s.data), s.seq-seq)
			}
			got += len(s.data)
		}
	}
}

func TestSequenceNumbersWrap(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	const first = 1<<32 - 6
	seq := p.open(ctx, first, 1460)
	next := uint32(first + 1)
	for range 3 {
		p.send(segment{seq: next, ack: seq, flags: ack, wnd: 60000, data: request})
		next += reqLen
		p.expect(ctx, segment{seq: seq, ack: next, flags: ack | psh, data: answer})
		seq += uint32(len(answer))
	}
}

func TestOverlapWhereNumbersWrap(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1<<32-6, 1460)
	p.send(segment{seq: 1<<32 - 5, ack: seq, flags: ack, wnd: 60000, data: request[:10]})
	p.expect(ctx, segment{seq: seq, ack: 5, flags: ack})
	p.send(segment{seq: 1<<32 - 5, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: reqLen - 5, flags: ack | psh, data: answer})
}

func TestRetransmitsWithBackoff(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer})
	seq += uint32(len(answer))
	// This acknowledgement is measured, so the next answer's first repetition comes soon.
	p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 60000, data: request})
	want := segment{seq: seq, ack: 1001 + 2*reqLen, flags: ack | psh, data: answer}
	p.expect(ctx, want)
	var waits []time.Duration
	for last := time.Now(); len(waits) < 3; last = time.Now() {
		p.expect(ctx, want)
		waits = append(waits, time.Since(last))
	}
	if waits[0] < 100*time.Millisecond || waits[1] < waits[0]*3/2 || waits[2] < waits[1]*3/2 {
		t.Errorf("waited %v between repetitions", waits)
	}
	p.send(segment{seq: 1001 + 2*reqLen, ack: seq + uint32(len(answer)), flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq + uint32(len(answer)), ack: 1001 + 3*reqLen, flags: ack | psh, data: answer})
}

func TestOutOfOrder(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	second := segment{seq: 1011, ack: seq, flags: ack, wnd: 60000, data: request[10:]}
	p.send(second)
	p.expect(ctx, segment{seq: seq, ack: 1001, flags: ack})
	p.send(second)
	p.expect(ctx, segment{seq: seq, ack: 1001, flags: ack})
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: request[:10]})
	p.expect(ctx, segment{seq: seq, ack: 1011, flags: ack})
	// What was received already comes again with something new.
	p.send(segment{seq: 1006, ack: seq, flags: ack, wnd: 60000, data: request[5:]})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer})
	seq += uint32(len(answer))
	// Keep-alive probes and old segments are acknowledged again, beyond the window, too.
	for _, at := range []uint32{1000, 1001, 1000 + reqLen, 1001 + reqLen + 5000} {
		p.send(segment{seq: at, ack: seq, flags: ack, wnd: 60000, data: "x"})
		p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack})
		if at == 1000 { // the acknowledgement of an old segment does not count
			p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 60000})
		}
	}
}

func TestHandshakeWithLosses(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	p.send(segment{seq: 1000, flags: syn, wnd: 60000, mss: 1460})
	seq := p.receive(ctx).seq + 1
	// The acknowledgement and the first segment were lost: no reason to refuse the second.
	p.send(segment{seq: 1011, ack: seq, flags: ack, wnd: 60000, data: request[10:]})
	p.expectNothing(100 * time.Millisecond)
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer})
}

func TestZeroWindow(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	p.send(segment{seq: 1001, ack: seq, flags: ack, data: request}) // with window 0
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack})
	for range 2 {
		p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack, data: answer[:1]})
		p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack})
	}
	// A small window is used, and the rest follows, both at once and not by a repetition after a second.
	ctx, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
	defer cancel()
	p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 10})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack, data: answer[:10]})
	p.send(segment{seq: 1001 + reqLen, ack: seq + 10, flags: ack, wnd: 60000})
	p.expect(ctx, segment{seq: seq + 10, ack: 1001 + reqLen, flags: ack | psh, data: answer[10:]})
}

func TestOwnWindow(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: "GET /sleep?ms=200 HTTP/1.1\r\nHost: a\r\n\r\n"})
	slept := p.receive(ctx)
	// While it sleeps nothing is consumed: what comes is kept as far as there is room.
	next, room := slept.ack, slept.wnd
	for room > 0 {
		n := min(room, 1000)
		p.send(segment{seq: next, ack: seq, flags: ack, wnd: 60000, data: strings.Repeat("\n", int(n))})
		got := p.receive(ctx)
		if next += uint32(n); got.ack != next || got.wnd != room-n {
			t.Fatalf("%v, want acknowledgement of %d and window %d", got, next, room-n)
		}
		room -= n
	}
	p.send(segment{seq: next, ack: seq, flags: ack, wnd: 60000, data: "G"})
	if got := p.receive(ctx); got.ack != next || got.wnd != 0 {
		t.Fatalf("%v, want acknowledgement of %d and window 0", got, next)
	}
	// Its answer tells that the window is open again.
	if got := p.receive(ctx); got.data == "" || got.wnd == 0 {
		t.Fatalf("%v, want an answer and a window", got)
	}
}

func TestOwnWindowOpensWithoutAnswer(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	// Behind a request that sleeps stands a body that fills the window, and the peer takes no answer.
	text := "GET /sleep?ms=100 HTTP/1.1\r\nHost: a\r\n\r\n" + "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n"
	text += strings.Repeat("x", 4096-len(text))
	next := uint32(1001)
	for len(text) > 0 {
		n := min(len(text), 1460)
		p.send(segment{seq: next, ack: seq, flags: ack, data: text[:n]})
		next, text = next+uint32(n), text[n:]
		p.expect(ctx, segment{seq: seq, ack: next, flags: ack})
	}
	if got := p.receive(ctx); got.ack != next || got.wnd != 4096 || got.data != "" {
		t.Fatalf("%v, want a window of 4096", got)
	}
}

func TestGuestClosesFirst(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	next := 1001 + uint32(len(closing))
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: closing})
	got := p.receive(ctx)
	if got.flags != ack|psh|fin || got.ack != next {
		t.Fatal(got)
	}
	seq += uint32(len(got.data)) + 1
	// Data after the answer is acknowledged and thrown away, not refused.
	p.send(segment{seq: next, ack: seq, flags: ack, wnd: 60000, data: "more"})
	p.expect(ctx, segment{seq: seq, ack: next + 4, flags: ack})
	for range 2 { // the second is a repetition, in TIME-WAIT
		p.send(segment{seq: next + 4, ack: seq, flags: ack | fin, wnd: 60000})
		p.expect(ctx, segment{seq: seq, ack: next + 5, flags: ack})
	}
	// TIME-WAIT does not keep the peer from using its port again.
	seq = p.open(ctx, 500, 1460)
	p.send(segment{seq: 501, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 501 + reqLen, flags: ack | psh, data: answer})
}

func TestTimeWaitEnds(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	next := 1001 + uint32(len(closing))
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: closing})
	seq += uint32(len(p.receive(ctx).data)) + 1
	p.send(segment{seq: next, ack: seq, flags: ack | fin, wnd: 60000})
	p.expect(ctx, segment{seq: seq, ack: next + 1, flags: ack})
	p.expectNothing(1200 * time.Millisecond)
	p.send(segment{seq: next, ack: seq, flags: ack | fin, wnd: 60000})
	p.expect(ctx, segment{seq: seq, flags: rst})
}

func TestPeerClosesFirst(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	p.send(segment{seq: 1001, ack: seq, flags: ack | fin, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 1002 + reqLen, flags: ack | psh | fin, data: answer})
	seq += uint32(len(answer))
	p.send(segment{seq: 1002 + reqLen, ack: seq, flags: ack, wnd: 60000})
	p.expect(ctx, segment{seq: seq, ack: 1002 + reqLen, flags: ack | psh | fin}) // again, as it was not acknowledged
	seq++
	p.send(segment{seq: 1002 + reqLen, ack: seq, flags: ack, wnd: 60000})
	p.expectNothing(100 * time.Millisecond)
	p.send(segment{seq: 1002 + reqLen, ack: seq, flags: ack, wnd: 60000})
	p.expect(ctx, segment{seq: seq, flags: rst}) // nothing is left of it
}

func TestBothCloseAtOnce(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	next := 1001 + uint32(len(closing))
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: closing})
	end := seq + uint32(len(p.receive(ctx).data)) + 1
	p.send(segment{seq: next, ack: seq, flags: ack | fin, wnd: 60000})
	p.expect(ctx, segment{seq: end, ack: next + 1, flags: ack})
	p.send(segment{seq: next + 1, ack: end, flags: ack, wnd: 60000})
	p.open(ctx, 2000, 1460)
}

func TestResetsAndStraySYNs(t *testing.T) {
	ctx, l := testContext(t), newLab(t)
	l.start(ctx)
	p := l.newPeer("10.9.0.50")
	seq := p.open(ctx, 1000, 1460)
	for _, stray := range []segment{
		{seq: 1100, flags: rst},
		{seq: 5, flags: syn, wnd: 1000},
		{seq: 1001, ack: seq + 1, flags: ack, wnd: 1000}, // of what was never sent
	} {
		p.send(stray)
		p.expect(ctx, segment{seq: seq, ack: 1001, flags: ack})
	}
	p.send(segment{seq: 1001 + 100000, flags: rst})
	p.expectNothing(100 * time.Millisecond)
	p.send(segment{seq: 1001, ack: seq, flags: ack, wnd: 60000, data: request})
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer})
	seq += uint32(len(answer))
	p.send(segment{seq: 1001 + reqLen, flags: rst})
	p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 60000})
	p.expect(ctx, segment{seq: seq, flags: rst})
}

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
