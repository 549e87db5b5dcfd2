package hello_test

import (
	"testing"
	"time"
)

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
