package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// When a bridge is removed its taps stay, on no bridge, and nothing but host puts them on the one that is made in its place. That one is there when it gets an
// address, of which the kernel tells, or when host looks again. A tap that somebody has put on another bridge stays there, and of what is behind it its own bridge is told nothing.

// mendTime is how often host looks whether taps are on their bridges.
const mendTime = 10 * time.Second

// mendTaps mends until ctx ends, at intervals and whenever it is told to by s.mending.
func (s *Service) mendTaps(ctx context.Context) {
	tick := time.NewTicker(mendTime)
	defer tick.Stop()
	missing := make(map[string]bool)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.mending:
		}
		if err := s.mend(missing); err != nil {
			s.log.Warn("could not look whether taps are on their bridges", "err", err)
		}
	}
}

// mendSoon has the taps looked at without delay.
func (s *Service) mendSoon() {
	select {
	case s.mending <- struct{}{}:
	default: // they will be
	}
}

// mend puts taps that are on no bridge on theirs, and tells the kernel of them again. Bridges that are missing are told once, and remembered in missing.
func (s *Service) mend(missing map[string]bool) error {
	alive := s.alive()
	if len(alive) == 0 {
		return nil
	}
	masters, err := s.bridges.masters()
	if err != nil {
		return err
	}
	found := make(map[string]bool)
	isThere := func(name string) bool {
		if there, asked := found[name]; asked {
			return there
		}
		_, err := s.bridges.find(name)
		if err != nil && !missing[name] {
			s.log.Warn("bridge was missing, its unikernels are cut off", "bridge", name, "err", err)
		}
		found[name], missing[name] = err == nil, err != nil
		return err == nil
	}
	var off []*instance
	for _, inst := range alive {
		if slices.ContainsFunc(inst.off(masters), isThere) {
			off = append(off, inst)
		}
	}
	if len(off) == 0 {
		return nil
	}
	s.bridges.forget(masters)
	s.meetAll(off, masters)
	return nil
}

// off names the bridges of those taps of the instance that are there and on none.
func (inst *instance) off(masters map[int]int) (names []string) {
	bridges := bridgeNames(inst.record.Args)
	for i, link := range inst.links[:min(len(inst.links), len(bridges))] {
		if master, there := masters[link]; there && master == 0 {
			names = append(names, bridges[i])
		}
	}
	return names
}

// alive lists the instances that run.
func (s *Service) alive() (all []*instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.names {
		if e.live() {
			all = append(all, e.inst)
		}
	}
	return all
}

// masters gives for each interface, by its index, that of the bridge that it is on, or 0.
func (b *bridges) masters() (map[int]int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.Sockets = b.sockets
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	masters := make(map[int]int, len(messages))
	for _, m := range messages {
		head := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttrAsMap(m[head.Len():])
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		masters[int(head.Index)] = 0
		if v := attrs[unix.IFLA_MASTER].Value; len(v) == 4 {
			masters[int(head.Index)] = int(nl.NativeEndian().Uint32(v))
		}
	}
	return masters, nil
}

// forget drops what is known of bridges that are not among the interfaces any more.
func (b *bridges) forget(interfaces map[int]int) {
	gone := func(index int) bool {
		_, there := interfaces[index]
		return !there
	}
	b.mu.Lock()
	for index := range b.pinned {
		if gone(index) {
			delete(b.pinned, index)
		}
	}
	b.mu.Unlock()
	b.unicasts.forget(gone)
	b.holders.forget(gone)
}

// meet tells the kernel again of an instance, should it have forgotten, and puts those of its taps on their bridges that are on none, as masters has it; what
// unicasts has of it, it tells next.
func (s *Service) meet(inst *instance, masters map[int]int) error {
	var errs []error
	for i := range inst.record.Args.Bridges {
		errs = append(errs, s.meetOn(inst, i, masters))
	}
	return errors.Join(errs...)
}

// meetOn is meet for the i-th network device.
func (s *Service) meetOn(inst *instance, i int, masters map[int]int) error {
	br, err := s.bridges.find(bridgeName(inst.record.Args.Bridges[i]))
	if err != nil {
		return err
	}
	if err := s.bridges.pin(br); err != nil { // before: it makes the kernel forget
		return err
	}
	a, known := acquaintanceOf(inst.record.Name, inst.record.Args)
	if i < len(inst.links) { // else a host that did not know them has started it
		if isOn, err := s.plugIn(inst, i, br, masters); err != nil || !isOn {
			return err
		}
		s.bridges.unicasts.note(inst.links[i], speaker{br.Attrs().Index, a.addr})
	}
	to, err := s.bridges.gateway(br)
	if err != nil || !known {
		return err
	}
	return s.bridges.introduce(a, nil, br, to.own)
}

// plugIn puts the i-th tap of an instance on its bridge if it is on none. It returns false if it is on another.
func (s *Service) plugIn(inst *instance, i int, br *netlink.Bridge, masters map[int]int) (isOn bool, err error) {
	t := &tap{name: inst.taps[i], index: inst.links[i]}
	if master, there := masters[t.index]; !there || master != 0 {
		return !there || master == br.Attrs().Index, nil
	}
	r := inst.record
	if err := s.bridges.attach(t, br, r.Name.String()); err != nil {
		return false, err
	}
	s.log.Info("tap was put on its bridge again", "unikernel", r.Name.String(), "tap", t.name, "bridge", br.Attrs().Name)
	return true, s.bridges.expect(t, mac(r.Name, r.Args.Bridges[i]))
}

// meetAll does so for all. What the kernel is told of one that has ended meanwhile does not stay.
func (s *Service) meetAll(all []*instance, masters map[int]int) {
	for _, inst := range all {
		err := s.meet(inst, masters)
		select {
		case <-inst.exited:
			err = errors.Join(err, s.partLate(inst))
		default:
		}
		if err != nil {
			s.log.Warn("unikernel was not met on its bridge", "unikernel", inst.record.Name.String(), "err", err)
		}
	}
	if err := s.bridges.unicasts.remake(); err != nil {
		s.log.Warn("bridges were not kept quiet", "err", err)
	}
}

// partLate is part for an instance that was met after its end. What is true of the one that runs in its place by now stays.
func (s *Service) partLate(inst *instance) error {
	e, unlock := s.lock(inst.record.Name)
	defer unlock()
	if !e.live() || e.inst == inst {
		return s.part(inst)
	}
	late, _ := acquaintanceOf(inst.record.Name, inst.record.Args)
	now, _ := acquaintanceOf(e.inst.record.Name, e.inst.record.Args)
	if !late.is(now) {
		return s.part(inst)
	}
	return s.bridges.unicasts.drop(inst.links...)
}
