package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/solo5"
)

// start makes a process of a unikernel, with all that it needs, gives it to the entry, which is locked, and lets it run. It is the attempt-th
// start in short order. If it fails, nothing stays but what the entry had before, and the record, which is the caller's to drop.
func (s *Service) start(e *entry, r record, image loaded, attempt int) (err error) {
	begin := time.Now()
	r.Boot = s.boot
	var g errgroup.Group // the disk is slower than the kernel: all at once
	g.Go(func() error { return s.keepImage(r.Digest, image.bytes) })
	g.Go(func() error { return s.store.saveRecord(r) })
	inst := &instance{record: r, started: begin, attempt: attempt, slot: noSlot, exited: make(chan struct{}), done: make(chan struct{})}
	w, err := s.prepare(inst, image)
	if werr := g.Wait(); err == nil { // a full disk may meet both
		err = werr
	}
	if err != nil {
		if w != nil {
			err = errors.Join(err, w.kill())
		}
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

// prepare brings a process to its gate: in its control group, on its CPUs, with its taps, and written down. It may return both a process and
// an error.
func (s *Service) prepare(inst *instance, image loaded) (_ *waiting, err error) {
	r := inst.record
	if inst.slot, err = s.slots.take(); err != nil {
		return nil, err
	}
	name := fileName(r.Name)
	if inst.group, err = s.cgroups.create(name, boundsOf(image.Target, r.Args.Memory)); err != nil {
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
	wires, err := s.openTaps(inst)
	defer func() { err = errors.Join(err, closeTaps(wires)) }()
	if err != nil {
		return nil, err
	}
	var attached errgroup.Group // on a bridge with many ports the kernel takes as long for it as for the process
	attached.Go(func() error { return s.attachAll(inst.record, wires) })
	w, err := s.bring(inst, image, wires, stdout)
	if aerr := attached.Wait(); err == nil {
		err = aerr
	}
	return w, err
}

// bring brings a process with its devices to its gate, and writes it down.
func (s *Service) bring(inst *instance, image loaded, wires []wire, stdout *os.File) (_ *waiting, err error) {
	blocks, err := s.openBlocks(inst.record)
	defer func() { err = errors.Join(err, closeBlocks(blocks)) }()
	if err != nil {
		return nil, err
	}
	guest := solo5.Guest{Blocks: blocks}
	for _, w := range wires {
		guest.Nets = append(guest.Nets, solo5.Net{Name: w.netif, Tap: w.tap.file, MAC: w.mac, MTU: w.bridge.Attrs().MTU})
	}
	w, err := s.spawn(inst, image, guest, stdout)
	if err != nil {
		return nil, err
	}
	if err := s.settle(inst, w.cmd.Process.Pid); err != nil {
		return nil, errors.Join(err, w.kill())
	}
	return w, nil
}

// wire is a network device of an instance: its tap, and the bridge that it belongs to.
type wire struct {
	netif  string
	mac    net.HardwareAddr
	tap    *tap
	bridge *netlink.Bridge
}

// openTaps makes a tap for each network device. It returns those that it made also when one fails.
func (s *Service) openTaps(inst *instance) ([]wire, error) {
	var wires []wire
	for _, b := range inst.record.Args.Bridges {
		bridge, err := s.bridges.find(bridgeName(b))
		if err != nil {
			return wires, err
		}
		t, err := s.bridges.open(s.cfg.UIDBase+inst.slot, inst.slot+1)
		if err != nil {
			return wires, err
		}
		inst.taps, inst.links = append(inst.taps, t.name), append(inst.links, t.index)
		wires = append(wires, wire{b.Netif, mac(inst.record.Name, b), t, bridge})
	}
	return wires, nil
}

// attachAll puts taps on their bridges.
func (s *Service) attachAll(r record, wires []wire) error {
	for _, w := range wires {
		if err := s.bridges.attach(w.tap, w.bridge, r.Name.String()); err != nil {
			return err
		}
		if err := s.quieten(r, w); err != nil {
			s.log.Warn("bridge was not kept quiet", "unikernel", r.Name.String(), "tap", w.tap.name, "err", err)
		}
	}
	return nil
}

func closeTaps(wires []wire) error {
	var errs []error
	for _, w := range wires {
		errs = append(errs, w.tap.file.Close())
	}
	return errors.Join(errs...)
}

// spawn starts the process of a guest that has its devices, under a user of its own and in its control group. It does not pass its gate.
func (s *Service) spawn(inst *instance, image loaded, guest solo5.Guest, stdout *os.File) (*waiting, error) {
	file, err := seal(image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	guest.Image, guest.Memory = file, inst.record.Args.Memory
	guest.Args, guest.Name = arguments(inst.record.Name, inst.record.Args), inst.record.Name.Label()
	tender, err := s.tender(image.Target, guest)
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

// tender is what runs a guest of a target.
func (s *Service) tender(target solo5.Target, guest solo5.Guest) (*solo5.Tender, error) {
	if target == solo5.HVT {
		return solo5.PrepareHVT(guest, s.program)
	}
	return solo5.PrepareSPT(guest)
}

// seal returns a file in memory that holds an image and that nobody can change. It stays while the unikernel runs, which maps it, and counts
// towards the limit of nobody: so only the parts that are read are in it, which are no more than fit into the unikernel's memory.
func seal(image loaded) (*os.File, error) {
	fd, err := unix.MemfdCreate("solo5-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("seal image: %w", err)
	}
	f := os.NewFile(uintptr(fd), "solo5-image")
	err = f.Truncate(int64(len(image.bytes)))
	for _, p := range image.parts {
		if err == nil {
			_, err = f.WriteAt(image.bytes[p.start:p.end], p.start)
		}
	}
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
	if ids := s.pinned(inst.record.Name, inst.record.Args); len(ids) > 0 {
		var set unix.CPUSet
		for _, id := range ids {
			set.Set(id)
		}
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			return fmt.Errorf("pin to CPUs %v: %w", ids, err)
		}
	}
	return s.store.saveHandle(inst.record.Name, handle{
		identity: inst.proc.identity, Boot: s.boot, Slot: inst.slot, Taps: inst.taps, Links: inst.links,
		Started: inst.started, Attempt: inst.attempt,
	})
}

// fifoPath is where the FIFO of a name is.
func (s *Service) fifoPath(name albatross.Name) string {
	return filepath.Join(s.cfg.RunDir, "fifo", fileName(name))
}
