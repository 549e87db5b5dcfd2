package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// Wire stands between a process and what it connects to, and passes everything on, but for what a trap holds.
type Wire struct {
	traps

	listener net.Listener
	dial     func() (net.Conn, error)
	serve    func(*link)

	wg    sync.WaitGroup
	mu    sync.Mutex
	done  bool
	links map[*link]bool
}

// link is one connection over a wire.
type link struct {
	wire           *Wire
	client, server net.Conn
	closed         chan struct{}
	once           sync.Once

	mu      sync.Mutex
	replies map[string]*Trap // traps for an answer, by its subject
}

// NewBusWire makes a wire to a bus, which need not run yet.
func NewBusWire(bus string) (*Wire, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make a wire to the bus: %w", err)
	}
	return newWire(l, func() (net.Conn, error) { return net.Dial("tcp", bus) }, (*link).serveBus), nil
}

func newWire(l net.Listener, dial func() (net.Conn, error), serve func(*link)) *Wire {
	w := &Wire{listener: l, dial: dial, serve: serve, links: map[*link]bool{}}
	w.wg.Go(w.accept)
	return w
}

// URL is the address of the bus as its client has it.
func (w *Wire) URL() string { return "nats://" + w.listener.Addr().String() }

// Close cuts all connections and waits until nothing is passed on any more.
func (w *Wire) Close() {
	_ = w.listener.Close()
	w.mu.Lock()
	w.done = true
	for k := range w.links {
		k.close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *Wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := w.dial()
		if err != nil {
			_ = client.Close() // nobody is there, as the client sees
			continue
		}
		k := &link{wire: w, client: client, server: server, closed: make(chan struct{}), replies: map[string]*Trap{}}
		w.mu.Lock()
		w.links[k] = true
		if w.done {
			k.close()
		}
		w.mu.Unlock()
		w.wg.Go(func() {
			w.serve(k)
			k.close()
			k.unanswered()
			w.mu.Lock()
			delete(w.links, k)
			w.mu.Unlock()
		})
	}
}

// close cuts the connection.
func (k *link) close() {
	k.once.Do(func() {
		close(k.closed)
		_ = k.client.Close()
		_ = k.server.Close()
	})
}

// unanswered closes the traps that wait for an answer which will not come: the sender does not know, as it was to be.
func (k *link) unanswered() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.replies {
		close(t.caught)
	}
}

// serveBus passes the protocol of NATS on, in both directions.
func (k *link) serveBus() {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer k.close()
		_ = k.pump(k.client, k.server, k.asked) // the other side learns that it ended
	})
	wg.Go(func() {
		defer k.close()
		_ = k.pump(k.server, k.client, k.answered)
	})
	wg.Wait()
}

// operation is one of NATS's protocol: its line, and what it carries if it carries something.
type operation struct {
	fields  [][]byte
	raw     []byte
	headers int // bytes of the headers at the begin of the payload
	payload []byte
}

// pump passes operations on until one is refused or an end is closed.
func (k *link) pump(from io.Reader, to io.Writer, passes func(operation) bool) error {
	in := bufio.NewReaderSize(from, 64<<10)
	for {
		o, err := readOperation(in)
		if err != nil {
			return err
		}
		if !passes(o) {
			return nil
		}
		if _, err := to.Write(o.raw); err != nil {
			return err
		}
	}
}

var errProtocol = errors.New("not the protocol of NATS")

func readOperation(in *bufio.Reader) (operation, error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return operation{}, err
	}
	o := operation{fields: bytes.Fields(line), raw: line}
	if len(o.fields) == 0 {
		return o, nil
	}
	switch string(o.fields[0]) {
	case "PUB", "MSG":
	case "HPUB", "HMSG":
		if o.headers, err = number(o.fields, 2); err != nil {
			return o, err
		}
	default:
		return o, nil
	}
	size, err := number(o.fields, 1)
	if err != nil {
		return o, err
	}
	o.raw = append(o.raw, make([]byte, size+len("\r\n"))...)
	o.payload = o.raw[len(line):]
	if _, err := io.ReadFull(in, o.payload); err != nil {
		return o, err
	}
	o.payload = o.payload[:size]
	if o.headers > size {
		return o, errProtocol
	}
	return o, nil
}

// number reads a field, counted from the end.
func number(fields [][]byte, last int) (int, error) {
	if len(fields) <= last {
		return 0, errProtocol
	}
	n, err := strconv.Atoi(string(fields[len(fields)-last]))
	if err != nil || n < 0 {
		return 0, errProtocol
	}
	return n, nil
}

// asked reports whether something that the client sends goes on.
func (k *link) asked(o operation) bool {
	if o.payload == nil {
		return true
	}
	t := k.wire.match(Message{Subject: string(o.fields[1]), Body: o.payload[o.headers:]})
	if t == nil {
		return true
	}
	plain := 3 // PUB subject size; one more with a subject for the answer
	if o.headers > 0 {
		plain = 4
	}
	if t.when == After && len(o.fields) > plain {
		k.mu.Lock()
		k.replies[string(o.fields[2])] = t
		k.mu.Unlock()
		return true
	}
	return t.hold(k.closed)
}

// answered reports whether something that the server sends goes on.
func (k *link) answered(o operation) bool {
	if o.payload == nil {
		return true
	}
	k.mu.Lock()
	t := k.replies[string(o.fields[1])]
	delete(k.replies, string(o.fields[1]))
	k.mu.Unlock()
	return t == nil || t.hold(k.closed)
}
