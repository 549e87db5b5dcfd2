package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// instance is one process of a unikernel, from its start until all that it held is gone.
type instance struct {
	record  record
	slot    int
	taps    []string
	links   []int // indexes of the taps
	started time.Time
	attempt int // how many restarts in short order led to it

	proc    *process
	group   *group
	fifo    *os.File // the reading end; nil if it is lost
	console *console

	stopping atomic.Bool   // a command ends it
	due      atomic.Bool   // it ended by itself, and is to be started again
	exited   chan struct{} // closed when the process is gone
	gone     atomic.Bool   // so is all that it held
	done     chan struct{} // closed when its console knows that too
}

// entry is what the service holds for one name. Commands for the name hold mu; inst changes under mu and the service's mu.
type entry struct {
	mu   sync.Mutex
	uses int       // commands that hold or want mu
	inst *instance // the last one; nil if there is none, done if it ended and is to be started again
}

// live says whether the unikernel runs.
func (e *entry) live() bool { return e.inst != nil && !e.inst.gone.Load() }

// lock gives the caller a name for itself.
func (s *Service) lock(name albatross.Name) (e *entry, unlock func()) {
	s.mu.Lock()
	e = s.names[name]
	if e == nil {
		e = &entry{}
		s.names[name] = e
	}
	e.uses++
	s.mu.Unlock()
	e.mu.Lock()
	return e, func() {
		e.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if e.uses--; e.uses == 0 && e.inst == nil {
			delete(s.names, name)
		}
	}
}

// put makes inst the instance of the entry, which is locked, in place of the one before.
func (s *Service) put(e *entry, inst *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.inst != nil {
		s.unrefImage(e.inst.record.Digest)
	}
	e.inst = inst
	s.changes.tell()
}

// forget ends an entry, which is locked, and whose instance is done.
func (s *Service) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unrefImage(e.inst.record.Digest)
	s.dropHandle(e.inst.record.Name) // it may be due to be started again
	s.unbook(e.inst.record.Name)
	e.inst = nil
}

// keepImage writes an image to the disk and counts the use of it.
func (s *Service) keepImage(digest, image []byte) error {
	s.mu.Lock()
	s.refs[hex.EncodeToString(digest)]++
	s.mu.Unlock()
	return s.store.saveImage(digest, image)
}

// dropImage ends a use of an image.
func (s *Service) dropImage(digest []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unrefImage(digest)
}

// unrefImage is dropImage for who holds s.mu: so nobody finds the image there and counts on it while it goes.
func (s *Service) unrefImage(digest []byte) {
	key := hex.EncodeToString(digest)
	if s.refs[key]--; s.refs[key] > 0 {
		return
	}
	delete(s.refs, key)
	if err := s.store.dropImage(digest); err != nil {
		s.log.Warn("could not remove an image", "err", err)
	}
}

// running counts the unikernels that run.
func (s *Service) running() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.names {
		if e.live() {
			n++
		}
	}
	return float64(n)
}

// loadBack reads the image of a record from the disk.
func (s *Service) loadBack(r record) (loaded, error) {
	data, err := s.store.readImage(r.Digest)
	if err != nil {
		return loaded{}, err
	}
	return inspect(data)
}

// run begins to watch an instance that runs.
func (s *Service) run(inst *instance) {
	inst.console = s.consoles.begin(inst.record.Name)
	s.watching.Go(func() { s.watch(s.watchCtx, inst) })
}

// watch follows an instance to its end, and then decides what becomes of its name. If host ends first, the unikernel runs on.
func (s *Service) watch(ctx context.Context, inst *instance) {
	var reading sync.WaitGroup
	if inst.fifo != nil {
		reading.Go(func() {
			readFIFO(ctx, inst.fifo, inst.exited, inst.console.add)
		})
	}
	ended, err := inst.proc.wait(ctx)
	close(inst.exited)
	reading.Wait()
	if ctx.Err() != nil {
		err = errors.Join(inst.proc.fd.Close(), closeFile(inst.fifo))
		if err != nil {
			s.log.Warn("could not let go of a unikernel", "unikernel", inst.record.Name.String(), "err", err)
		}
		return
	}
	if err != nil {
		s.log.Error("could not wait for a unikernel", "unikernel", inst.record.Name.String(), "err", err)
	}
	next, again := after(inst.record, ended)
	attempt, wait := pause(inst.attempt, time.Since(inst.started))
	if again && !inst.stopping.Load() { // before anybody can know of the end: host may die now, or a command come
		s.markDue(inst.record.Name, attempt)
		inst.due.Store(true)
	} else {
		s.dropHandle(inst.record.Name)
	}
	s.buried(inst, ended)
	if s.settled(inst, again) {
		return
	}
	s.startLater(ctx, inst, next, attempt, wait)
}

// dropHandle says that nothing runs under a name.
func (s *Service) dropHandle(name albatross.Name) {
	if err := s.store.dropHandle(name); err != nil {
		s.log.Error("could not forget a process", "unikernel", name.String(), "err", err)
	}
}

// buried removes what an instance held, and tells of its end.
func (s *Service) buried(inst *instance, ended exit) {
	name := inst.record.Name
	if err := s.release(inst); err != nil {
		s.log.Error("could not clean up after a unikernel", "unikernel", name.String(), "err", err)
	}
	inst.gone.Store(true) // who reads of the end on the console does not find it in the infos
	s.mu.Lock()
	s.changes.tell()
	s.mu.Unlock()
	now := time.Now()
	inst.console.setEnded(now) // and finds the console among the inactive ones
	if by := inst.stopping.Load(); by || inst.record.Args.Fail.Restart || inst.record.Args.AddName {
		inst.console.setStopped(by)
	}
	inst.console.add(line{at: now, text: ended.String()})
	s.metrics.exits.WithLabelValues(ended.kind()).Inc()
	s.log.Info("unikernel ended", "unikernel", name.String(), "pid", inst.proc.PID, "how", ended.String(),
		"asked", inst.stopping.Load(), "dur", now.Sub(inst.started))
	close(inst.done)
}

// release removes what an instance holds beside its process, as far as it has it; what is written of it is the caller's.
func (s *Service) release(inst *instance) error {
	errs := []error{closeFile(inst.fifo), removeFile(s.fifoPath(inst.record.Name))}
	if inst.group != nil {
		errs = append(errs, inst.group.remove(context.Background()))
	}
	if inst.proc != nil {
		errs = append(errs, inst.proc.fd.Close())
	}
	errs = append(errs, s.part(inst))
	s.slots.give(inst.slot)
	return errors.Join(errs...)
}

// closeFile closes f unless it is nil.
func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

const (
	politeTime = 2 * time.Second  // after SIGTERM; an spt unikernel dies of it at once
	killTime   = 10 * time.Second // after SIGKILL
)

// stop ends an instance and waits until all that it held is gone. The caller has the name locked.
func (s *Service) stop(inst *instance) error {
	inst.stopping.Store(true)
	select {
	case <-inst.done:
		return nil // it is its fd that is closed
	default:
	}
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, politeTime}, {unix.SIGKILL, killTime}} {
		if err := inst.proc.signal(step.signal); err != nil {
			return err
		}
		timer := time.NewTimer(step.wait)
		select {
		case <-inst.done:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
	return fmt.Errorf("process %d does not end", inst.proc.PID)
}
