package crash_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"fulmar/e2e/lab"
)

// again is the time after which a process that could not start is started again, as systemd does.
const again = 50 * time.Millisecond

// member is one process of an installation, which is started again whenever it ends.
type member struct {
	name  string
	wire  *lab.Wire // to the bus; nil for the bus and the host
	start func() (*lab.Process, error)

	kept sync.WaitGroup
	stop chan struct{}

	mu     sync.Mutex
	proc   *lab.Process
	moved  chan struct{} // closed when proc changes
	doomed map[*lab.Process]bool
	ends   []string // that nobody wanted
	starts int
}

// run starts a member and keeps it running.
func (m *member) run() {
	m.stop, m.moved, m.doomed = make(chan struct{}), make(chan struct{}), map[*lab.Process]bool{}
	m.kept.Go(m.keep)
}

func (m *member) keep() {
	for {
		p, err := m.start()
		select {
		case <-m.stop:
			if err == nil {
				_ = p.Stop() // how it ends is no matter any more
			}
			return
		default:
		}
		if err != nil {
			timer := time.NewTimer(again)
			select {
			case <-m.stop:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		m.set(p)
		select {
		case <-p.Ended():
		case <-m.stop:
			if err := p.Stop(); err != nil {
				m.complain(err.Error())
			}
			return
		}
		m.mu.Lock()
		wanted := m.doomed[p]
		m.mu.Unlock()
		if !wanted {
			m.complain("it ended by itself, see " + p.Log())
		}
		m.set(nil)
	}
}

func (m *member) set(p *lab.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proc = p
	if p != nil {
		m.starts++
	}
	close(m.moved)
	m.moved = make(chan struct{})
}

func (m *member) complain(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = append(m.ends, fmt.Sprintf("%s: %s", m.name, what))
}

// running waits until the member runs, and gives its process.
func (m *member) running(ctx context.Context) (*lab.Process, error) {
	for {
		m.mu.Lock()
		p, moved := m.proc, m.moved
		m.mu.Unlock()
		if p != nil {
			return p, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s to run: %w", m.name, ctx.Err())
		}
	}
}

// kill kills the process that runs; another one is started at once.
func (m *member) kill() error {
	m.mu.Lock()
	p := m.proc
	if p != nil {
		m.doomed[p] = true
	}
	m.mu.Unlock()
	if p == nil {
		return nil // it is dead, by somebody else's hand
	}
	return p.Kill()
}

// end stops the member for good, and gives how often it was started and what nobody wanted of it.
func (m *member) end() (starts int, complaints []string) {
	close(m.stop)
	m.kept.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts, m.ends
}
