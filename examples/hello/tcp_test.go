package hello_test

import (
	"context"
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
	before := segment{seq: seq, ack: 1001 + reqLen, flags: ack | psh, data: answer}
	p.expect(ctx, before)
	seq += uint32(len(answer))
	// This acknowledgement is measured, so the next answer's first repetition comes soon.
	begin := time.Now()
	p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 60000, data: request})
	want := segment{seq: seq, ack: 1001 + 2*reqLen, flags: ack | psh, data: answer}
	p.expectAfter(ctx, before, want)
	// A slow machine makes each of them late, and what follows it as late, but none early.
	for least, wait := time.Duration(0), 200*time.Millisecond; wait <= 800*time.Millisecond; wait *= 2 {
		p.expect(ctx, want)
		if least += wait; time.Since(begin) < least {
			t.Errorf("a repetition came after %v, and may only after %v", time.Since(begin), least)
		}
	}
	p.send(segment{seq: 1001 + 2*reqLen, ack: seq + uint32(len(answer)), flags: ack, wnd: 60000, data: request})
	p.expectAfter(ctx, want, segment{seq: seq + uint32(len(answer)), ack: 1001 + 3*reqLen, flags: ack | psh, data: answer})
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
	for range 5 { // on a slow machine it may be late
		if p.opensWindow(ctx) {
			return
		}
		p.port++
	}
	t.Error("a window that opens is not used at once")
}

// opensWindow takes an answer with a window that is closed, then small and then wide, and reports whether what it lets
// pass came at once each time, and not by a repetition after a second.
func (p *peer) opensWindow(ctx context.Context) bool {
	p.t.Helper()
	seq := p.open(ctx, 1000, 1460)
	p.send(segment{seq: 1001, ack: seq, flags: ack, data: request}) // with window 0
	p.expect(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack})
	probe := segment{seq: seq, ack: 1001 + reqLen, flags: ack, data: answer[:1]}
	for range 2 {
		p.expect(ctx, probe)
		p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack})
	}
	begin := time.Now()
	p.send(segment{seq: 1001 + reqLen, ack: seq, flags: ack, wnd: 10})
	p.expectAfter(ctx, probe, segment{seq: seq, ack: 1001 + reqLen, flags: ack, data: answer[:10]})
	p.send(segment{seq: 1001 + reqLen, ack: seq + 10, flags: ack, wnd: 60000})
	p.expectAfter(ctx, segment{seq: seq, ack: 1001 + reqLen, flags: ack, data: answer[:10]},
		segment{seq: seq + 10, ack: 1001 + reqLen, flags: ack | psh, data: answer[10:]})
	return time.Since(begin) < 700*time.Millisecond
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
