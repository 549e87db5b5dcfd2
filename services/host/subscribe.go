package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"fulmar/albatross"
)

// lineTime is how long a subscriber may take none of the lines that it is sent.
const lineTime = 5 * time.Second

// answerConsole carries out one command of console.sock. A subscription lasts until the client says or closes anything, does not take a line
// for lineTime, or is the oldest of too many.
func (s *Service) answerConsole(ctx context.Context, conn net.Conn, request albatross.Wire) (more bool) {
	switch c := request.Payload.(type) {
	case albatross.ConsoleSubscribe:
		if !request.Name.HasLabel() {
			s.reply(conn, request.Header, albatross.Failure("path used instead of name"))
			return false
		}
		from := sinceCount(c.Count)
		if c.Since != nil {
			from = sinceTime(*c.Since)
		}
		s.subscribe(ctx, conn, request.Header, from)
	case albatross.ConsoleListInactive:
		if request.Name.HasLabel() {
			s.reply(conn, request.Header, albatross.Failure("name used"))
			return false
		}
		list := albatross.Consoles{}
		for _, name := range s.consoles.inactive() {
			if shown, ok := relative(name, request.Name); ok {
				list = append(list, shown)
			}
		}
		s.reply(conn, request.Header, list)
	case albatross.ConsoleAdd:
		s.reply(conn, request.Header, s.addConsole(request.Name))
	default:
		s.reply(conn, request.Header, albatross.Failure("unknown command"))
	}
	return false
}

// subscribe sends the lines of a console as they come.
func (s *Service) subscribe(ctx context.Context, conn net.Conn, h albatross.Header, from since) {
	con, sub, used := s.consoles.subscribe(h.Name, from)
	defer con.unsubscribe(sub)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	first := albatross.Text("subscribed")
	if !used {
		first = "waiting for VM"
	}
	s.reply(conn, h, first)

	left, leave := hears(conn, anything)
	defer leave()
	for {
		select {
		case <-left:
			return
		case <-sub.gone:
			return
		case <-sub.wake:
		}
		lines, missed := con.fetch(sub)
		if missed > 0 {
			s.metrics.missed.Add(float64(missed))
			lines = append([]line{{at: lines[0].at, text: fmt.Sprintf("fulmar: %d lines were lost here, the reader was too slow", missed)}}, lines...)
		}
		for _, l := range lines {
			if !s.send(conn, h.Name, l) {
				return
			}
		}
	}
}

// anything is all that a subscriber may say: it ends the subscription.
func anything(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }

// hears has a client heard beside what it is told: left is closed when hear has returned, as it does when the client is gone. leave closes the
// connection and waits for that.
func hears(conn net.Conn, hear func(net.Conn)) (left <-chan struct{}, leave func()) {
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		_ = conn.SetReadDeadline(time.Time{})
		hear(conn)
	}()
	return heard, func() {
		_ = conn.Close()
		<-heard
	}
}

// send sends one line, and says whether the client took it.
func (s *Service) send(conn net.Conn, name albatross.Name, l line) bool {
	_ = conn.SetWriteDeadline(time.Now().Add(lineTime))
	err := albatross.WriteData(conn, name, albatross.ConsoleData{Time: l.at, Line: l.text})
	if errors.Is(err, albatross.ErrValue) {
		s.log.Error("could not encode a console line", "unikernel", name.String(), "err", err)
		return true
	}
	return err == nil
}
