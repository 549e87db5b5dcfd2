package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/solo5"
)

// instance is one process of a unikernel, from its start until all that it held is gone.
type instance struct {
	record  record
	slot    int
	taps    []string
	started time.Time
	attempt int // how many restarts in short order led to it

	proc    *process
	group   *group
	fifo    *os.File // the reading end; nil if it is lost
	console *console

	stopping atomic.Bool   // a command ends it
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
}

// forget ends an entry, which is locked, and whose instance is done.
func (s *Service) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unrefImage(e.inst.record.Digest)
	if err := s.store.dropHandle(e.inst.record.Name); err != nil { // it may be due to be started again
		s.log.Warn("could not forget a process", "unikernel", e.inst.record.Name.String(), "err", err)
	}
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

// start makes a process of a unikernel, with all that it needs, gives it to the entry, which is locked, and lets it run. It is the attempt-th
// start in short order. If it fails, nothing stays but what the entry had before,
// and the record, which is the caller's to drop.
func (s *Service) start(e *entry, r record, image loaded, attempt int) (err error) {
	begin := time.Now()
	r.Boot = s.boot
	var g errgroup.Group // the disk is slower than the kernel: all at once
	g.Go(func() error { return s.keepImage(r.Digest, image.bytes) })
	g.Go(func() error { return s.store.saveRecord(r) })
	inst := &instance{record: r, started: begin, attempt: attempt, slot: noSlot, exited: make(chan struct{}), done: make(chan struct{})}
	w, err := s.prepare(inst, image)
	if serr := g.Wait(); serr != nil && err == nil {
		err = errors.Join(serr, w.kill())
	}
	if err != nil {
		s.dropImage(r.Digest)
		return errors.Join(err, s.release(inst))
	}
	s.put(e, inst)
	s.run(inst)
	if err := w.open(); err != nil { // it was killed at its gate, and that will be told
		s.log.Warn("unikernel ended before it began", "unikernel", r.Name.String(), "err", err)
	}
	s.metrics.startDuration.Observe(time.Since(begin).Seconds())
	s.log.Info("unikernel started", "unikernel", r.Name.String(), "pid", inst.proc.PID, "taps", inst.taps,
		"digest", hex.EncodeToString(r.Digest), "memory_mb", r.Args.Memory, "dur", time.Since(begin))
	return nil
}

// waiting is a process that waits at its gate.
type waiting struct {
	cmd  *exec.Cmd
	gate *solo5.Gate
}

// open lets the process run.
func (w *waiting) open() error {
	return errors.Join(w.gate.Open(), w.cmd.Process.Release())
}

// kill ends the process before it ran.
func (w *waiting) kill() error {
	err := errors.Join(w.cmd.Process.Kill(), w.gate.Close())
	_ = w.cmd.Wait() // it was killed
	return err
}

// prepare brings a process to its gate: in its control group, on its CPUs, with its taps, and written down.
func (s *Service) prepare(inst *instance, image loaded) (_ *waiting, err error) {
	r := inst.record
	if inst.slot, err = s.slots.take(); err != nil {
		return nil, err
	}
	name := fileName(r.Name)
	if inst.group, err = s.cgroups.create(name, r.Args.Memory); err != nil {
		return nil, err
	}
	stdout, err := makeFIFO(s.fifoPath(r.Name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stdout.Close()) }()
	if inst.fifo, err = openFIFO(s.fifoPath(r.Name)); err != nil {
		return nil, err
	}
	nets, err := s.attachAll(inst)
	defer func() { err = errors.Join(err, closeTaps(nets)) }()
	if err != nil {
		return nil, err
	}
	w, err := s.spawn(inst, image, nets, stdout)
	if err != nil {
		return nil, err
	}
	if err := s.settle(inst, w.cmd.Process.Pid); err != nil {
		return nil, errors.Join(err, w.kill())
	}
	return w, nil
}

// attachAll makes a tap for each network device. It returns those that it made also when one fails.
func (s *Service) attachAll(inst *instance) ([]solo5.Net, error) {
	var nets []solo5.Net
	for _, b := range inst.record.Args.Bridges {
		bridge, err := s.bridges.find(bridgeName(b))
		if err != nil {
			return nets, err
		}
		t, err := s.bridges.attach(bridge, s.cfg.UIDBase+inst.slot, inst.record.Name.String())
		if err != nil {
			return nets, err
		}
		inst.taps = append(inst.taps, t.name)
		nets = append(nets, solo5.Net{Name: b.Netif, Tap: t.file, MAC: mac(inst.record.Name, b), MTU: bridge.Attrs().MTU})
	}
	return nets, nil
}

func closeTaps(nets []solo5.Net) error {
	var errs []error
	for _, n := range nets {
		errs = append(errs, n.Tap.Close())
	}
	return errors.Join(errs...)
}

// spawn starts the process, under a user of its own and in its control group. It does not pass its gate.
func (s *Service) spawn(inst *instance, image loaded, nets []solo5.Net, stdout *os.File) (*waiting, error) {
	file, err := seal(image.bytes)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	tender, err := solo5.PrepareSPT(solo5.Guest{
		Image: file, Memory: inst.record.Args.Memory, Nets: nets,
		Args: arguments(inst.record.Name, inst.record.Args), Name: inst.record.Name.Label(),
	})
	if mismatch := (*solo5.MismatchError)(nil); errors.As(err, &mismatch) {
		return nil, refusal(mismatch.Error())
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = tender.Close() }()
	cmd, gate, err := tender.GatedCommand()
	if err != nil {
		return nil, err
	}
	id := uint32(s.cfg.UIDBase + inst.slot)
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = stdout, stdout, "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}, Setsid: true}
	if err := inst.group.start(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start process: %w", err), gate.Close())
	}
	return &waiting{cmd: cmd, gate: gate}, nil
}

// seal returns a file in memory that holds an image and that nobody can change.
func seal(image []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("solo5-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("seal image: %w", err)
	}
	f := os.NewFile(uintptr(fd), "solo5-image")
	_, err = f.Write(image)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal image: %w", err), f.Close())
	}
	return f, nil
}

// settle pins the process and writes it down.
func (s *Service) settle(inst *instance, pid int) (err error) {
	if inst.proc, err = openProcess(pid); err != nil {
		return err
	}
	if ids := inst.record.Args.CPUIDs; len(ids) > 0 {
		var set unix.CPUSet
		for _, id := range ids {
			set.Set(id)
		}
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			return fmt.Errorf("pin to CPUs %v: %w", ids, err)
		}
	}
	return s.store.saveHandle(inst.record.Name, handle{
		identity: inst.proc.identity, Boot: s.boot, Slot: inst.slot, Taps: inst.taps, Started: inst.started, Attempt: inst.attempt,
	})
}

// fifoPath is where the FIFO of a name is.
func (s *Service) fifoPath(name albatross.Name) string {
	return filepath.Join(s.cfg.RunDir, "fifo", fileName(name))
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
	s.buried(inst, ended)
	s.resume(ctx, inst, ended)
}

// buried removes what an instance held, and tells of its end.
func (s *Service) buried(inst *instance, ended exit) {
	name := inst.record.Name
	if err := s.release(inst); err != nil {
		s.log.Error("could not clean up after a unikernel", "unikernel", name.String(), "err", err)
	}
	inst.gone.Store(true) // who reads of the end on the console does not find it in the infos
	now := time.Now()
	inst.console.add(line{at: now, text: ended.String()})
	inst.console.setEnded(now)
	s.metrics.exits.WithLabelValues(ended.kind()).Inc()
	s.log.Info("unikernel ended", "unikernel", name.String(), "pid", inst.proc.PID, "how", ended.String(),
		"asked", inst.stopping.Load(), "dur", now.Sub(inst.started))
	close(inst.done)
}

// release removes what an instance holds beside its process, as far as it has it.
func (s *Service) release(inst *instance) error {
	errs := []error{closeFile(inst.fifo), removeFile(s.fifoPath(inst.record.Name)), s.store.dropHandle(inst.record.Name)}
	if inst.group != nil {
		errs = append(errs, inst.group.remove(context.Background()))
	}
	if inst.proc != nil {
		errs = append(errs, inst.proc.fd.Close())
	}
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
