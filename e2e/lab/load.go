package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	workers     = 64
	requestTime = 15 * time.Second // on a machine that stalls; what is dropped shows by what was sent again
)

// Load is a stream of HTTP requests, each on a new connection, at a constant rate that does not wait for answers.
type Load struct {
	clients *Space
	resent  int // before it
	stop    chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	result Result
}

// Result is what became of the requests of a load.
type Result struct {
	Requests int
	Failed   int
	Errors   map[string]int // by their text
	Bodies   map[string]int // answers by their body
	Answers  []Answer
	Slowest  time.Duration
	Behind   int // requests that started over 100 ms late because all workers were busy
	Resent   int // first packets of connections that were sent again
}

// Answer is one good answer.
type Answer struct {
	Begin, End time.Time // from before the connection was opened until the body was read
	Body       string
}

// Mixed gives the answers with a body of before to connections that were opened after somebody had an answer with
// another body already: there are none if a switch is one.
func (r Result) Mixed(before string) []Answer {
	var switched time.Time
	for _, a := range r.Answers {
		if a.Body != before && (switched.IsZero() || a.End.Before(switched)) {
			switched = a.End
		}
	}
	var mixed []Answer
	for _, a := range r.Answers {
		if a.Body == before && !switched.IsZero() && a.Begin.After(switched) {
			mixed = append(mixed, a)
		}
	}
	return mixed
}

// Load starts a load of rate requests a second from the clients to an address.
func (l *Lab) Load(to netip.AddrPort, rate int) *Load {
	load := &Load{clients: l.Clients, stop: make(chan struct{}), result: Result{Errors: map[string]int{}, Bodies: map[string]int{}}}
	resent, err := l.Clients.resent()
	if err != nil {
		load.fail(err)
	}
	load.resent = resent
	turns := make(chan time.Time, rate) // a second of requests may wait for a worker
	load.wg.Go(func() {
		defer close(turns)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-load.stop:
				return
			case t := <-tick.C:
				turns <- t
			}
		}
	})
	for range workers {
		load.wg.Go(func() {
			err := l.Clients.Do(func() error {
				for due := range turns {
					load.count(due, func() (string, error) { return get(to) })
				}
				return nil
			})
			if err != nil {
				load.count(time.Now(), func() (string, error) { return "", err })
			}
		})
	}
	return load
}

// Stop ends the load and gives its result when the last answer is there.
func (l *Load) Stop() Result {
	close(l.stop)
	l.wg.Wait()
	resent, err := l.clients.resent()
	if err != nil {
		l.fail(err)
	}
	l.result.Resent = resent - l.resent
	return l.result
}

// Seen reports how many answers had a body so far.
func (l *Load) Seen(body string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result.Bodies[body]
}

func (l *Load) count(due time.Time, request func() (string, error)) {
	begin := time.Now()
	body, err := request()
	end := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Requests++
	l.result.Slowest = max(l.result.Slowest, end.Sub(begin))
	if begin.Sub(due) > 100*time.Millisecond {
		l.result.Behind++
	}
	if err != nil {
		l.fail(err)
		return
	}
	l.result.Bodies[body]++
	l.result.Answers = append(l.result.Answers, Answer{begin, end, body})
}

// fail counts what failed. It is called before the load starts, after its end, or with the lock.
func (l *Load) fail(err error) {
	l.result.Failed++
	l.result.Errors[reason(err)]++
}

// reason is an error without the addresses and ports that make every one different.
func reason(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// Get makes one request from the clients, on a new connection, and gives the body of a good answer.
func (s *Space) Get(to netip.AddrPort) (body string, err error) {
	err = s.Do(func() error {
		body, err = get(to)
		return err
	})
	return body, err
}

// Get makes one request from the host itself, on a new connection, and gives the body of a good answer.
func Get(to netip.AddrPort) (string, error) { return get(to) }

// get makes one request on a new connection and gives the body of a good answer.
func get(to netip.AddrPort) (string, error) {
	d := net.Dialer{Timeout: requestTime}
	c, err := d.Dial("tcp4", to.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	return Ask(c, "/", false)
}

// Ask makes one HTTP request on a connection and gives the body of a good answer.
func Ask(c net.Conn, path string, keepAlive bool) (string, error) {
	if err := c.SetDeadline(time.Now().Add(requestTime)); err != nil {
		return "", err
	}
	connection := "close"
	if keepAlive {
		connection = "keep-alive"
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: lab\r\nConnection: %s\r\n\r\n", path, connection); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", r.StatusCode)
	}
	return strings.TrimSpace(string(body)), nil
}

// FirstAnswer asks an address, from this namespace, until it answers.
func FirstAnswer(ctx context.Context, to netip.AddrPort) error {
	for ctx.Err() == nil {
		d := net.Dialer{Timeout: 5 * time.Millisecond} // the first packets meet a guest that still boots
		c, err := d.DialContext(ctx, "tcp4", to.String())
		if err != nil {
			continue
		}
		_, err = Ask(c, "/", false)
		_ = c.Close()
		if err == nil {
			return nil
		}
	}
	return ctx.Err()
}
