package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// adopt takes over what the host before this one left: what runs is watched again, what ended meanwhile is forgotten or started
// again, what ran before a boot of the machine is started again, and what nothing explains is removed.
func (s *Service) adopt() error {
	all, err := s.store.load(s.log)
	if err != nil {
		return err
	}
	var later []*instance // to be started again
	known := explained{names: make(map[string]bool), handles: make(map[string]bool), digests: make(map[string]bool)}
	for _, v := range all {
		s.refs[hex.EncodeToString(v.Digest)]++
		known.digests[hex.EncodeToString(v.Digest)] = true
		s.ledger.booked[v.Name] = v.Args // it was allowed when it was created
	}
	if len(all) > 0 {
		s.bridges.holders.forgot(time.Now())
	}
	gates := time.Now().Add(gateTime)
	for _, v := range all {
		inst, adopted, err := s.find(v, gates)
		if err != nil {
			return err
		}
		s.names[v.Name] = &entry{inst: inst}
		switch {
		case adopted:
			known.names[fileName(v.Name)], known.handles[fileName(v.Name)] = true, true
		case s.wanted(v):
			known.handles[fileName(v.Name)] = true
			inst.due.Store(true)
			later = append(later, inst)
		default:
			s.missed(inst)
		}
	}
	if err := s.sweep(known); err != nil {
		return err
	}
	var alive []*instance
	for _, v := range all {
		if e := s.names[v.Name]; e != nil && e.live() {
			alive = append(alive, e.inst)
		}
	}
	masters, err := s.bridges.masters()
	if err != nil {
		return err
	}
	s.meetAll(alive, masters) // before they can part
	for _, inst := range alive {
		s.run(inst)
		s.metrics.adopted.Inc()
		s.log.Info("unikernel adopted", "unikernel", inst.record.Name.String(), "pid", inst.proc.PID)
	}
	s.watching.Go(func() { // in their order; one that cannot be started is tried again, and the others do not wait for it
		for _, inst := range later {
			if !s.startAgain(inst, inst.record, inst.attempt) {
				attempt, wait := pause(inst.attempt, 0)
				s.watching.Go(func() { s.startLater(s.watchCtx, inst, inst.record, attempt, wait) })
			}
		}
	})
	return nil
}

// A process that was started a moment before host died may still have waited at its gate, which closed with host: it never ran and ends,
// and its create was never answered. It must not be taken for one that runs, or whoever creates it again is told that it exists.
const (
	moment   = 2 * time.Second
	gateTime = 50 * time.Millisecond // for all that wait to end
)

// find looks for the process of what is saved; those that waited at a gate have ended before gates. If it does not run (any more), the instance that it returns is done.
func (s *Service) find(v saved, gates time.Time) (inst *instance, adopted bool, err error) {
	inst = &instance{record: v.record, slot: noSlot, exited: make(chan struct{}), done: make(chan struct{})}
	if v.handle != nil {
		inst.attempt, inst.started = v.handle.Attempt, v.handle.Started
	}
	if v.handle != nil && v.handle.Boot == s.boot && v.handle.PID != 0 {
		inst.proc, err = adoptProcess(v.handle.identity)
		if err == nil && time.Since(v.handle.Started) < moment && inst.proc.endsBefore(gates) {
			err = errors.Join(errNotThere, inst.proc.fd.Close())
		}
		if err == nil {
			s.rejoin(inst, *v.handle)
			return inst, true, nil
		}
		if !errors.Is(err, errNotThere) {
			return nil, false, fmt.Errorf("adopt %s: %w", v.Name, err)
		}
	}
	inst.gone.Store(true)
	close(inst.done)
	return inst, false, nil
}

// rejoin gives an adopted instance back what belongs to it.
func (s *Service) rejoin(inst *instance, h handle) {
	name := inst.record.Name
	inst.slot, inst.taps, inst.links = h.Slot, h.Taps, h.Links
	s.slots.claim(h.Slot)
	inst.group = &group{c: s.cgroups, name: fileName(name)}
	var err error
	if inst.fifo, err = openFIFO(s.fifoPath(name)); err != nil {
		inst.fifo = nil
		s.log.Error("could not open the console of an adopted unikernel", "unikernel", name.String(), "err", err)
	}
}

// wanted says whether what does not run is to be started: after a boot, when its restart was due, or when it is restarted whatever it ended with.
// A create that was not finished when host died is not: nobody was told that it was.
func (s *Service) wanted(v saved) bool {
	switch {
	case v.Boot != s.boot:
		return true
	case v.handle == nil:
		return false
	}
	return v.handle.PID == 0 || v.Args.Fail.Restart && exit{}.restarts(v.Args.Fail.ExitCodes)
}

// missed forgets an instance that ended while host did not run.
func (s *Service) missed(inst *instance) {
	name := inst.record.Name
	e, unlock := s.lock(name)
	defer unlock()
	if err := s.store.dropRecord(name); err != nil {
		s.log.Error("could not forget a unikernel", "unikernel", name.String(), "err", err)
	}
	if err := s.part(inst); err != nil {
		s.log.Error("could not clean up after a unikernel", "unikernel", name.String(), "err", err)
	}
	s.forget(e)
	s.metrics.exits.WithLabelValues(exit{}.kind()).Inc()
	s.log.Info("unikernel ended while host did not run", "unikernel", name.String(), "how", exit{}.String())
}

// explained is what has a reason to be there, by the names of files.
type explained struct {
	names   map[string]bool // of adopted instances
	handles map[string]bool // of those and of instances that are to be started again
	digests map[string]bool // of images in use
}

// sweep removes everything that is not explained: processes, control groups of host's making, FIFOs, files.
func (s *Service) sweep(known explained) error {
	orphans, err := s.store.orphans()
	if err != nil {
		return err
	}
	for _, h := range orphans {
		if err := s.endOrphan(h); err != nil {
			return err
		}
	}
	if err := s.sweepGroups(known.names); err != nil {
		return err
	}
	return errors.Join(sweepDir(filepath.Join(s.cfg.RunDir, "fifo"), known.names), s.store.sweep(known.handles, known.digests))
}

// sweepGroups removes the control groups that nothing explains, with what is in them. What it cannot tell to be host's it leaves alone.
func (s *Service) sweepGroups(known map[string]bool) error {
	own, others, err := s.cgroups.list()
	if err != nil {
		return err
	}
	for _, g := range own {
		if known[g.name] {
			continue
		}
		if err := errors.Join(g.kill(), g.remove(context.Background())); err != nil {
			return err
		}
		s.log.Warn("removed an orphaned control group", "group", g.path())
	}
	for _, name := range others {
		if !known[name] {
			s.log.Warn("left a control group alone that host has not made", "group", filepath.Join(s.cgroups.parent, name))
		}
	}
	return nil
}

// endOrphan kills a process that is written down and belongs to nothing: its destroy was cut short.
func (s *Service) endOrphan(h handle) error {
	if h.Boot != s.boot || h.PID == 0 {
		return nil
	}
	p, err := adoptProcess(h.identity)
	if errors.Is(err, errNotThere) {
		return nil
	}
	if err != nil {
		return err
	}
	s.log.Warn("killed an orphaned process", "pid", h.PID)
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	err = p.signal(unix.SIGKILL)
	if err == nil {
		_, err = p.wait(ctx)
	}
	return errors.Join(err, p.fd.Close())
}
