package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"fulmar/albatross"
)

// The replies of albatross.
const (
	created   = albatross.Text("created unikernel")
	destroyed = albatross.Text("destroyed unikernel")
	unwaited  = albatross.Text("destroyed: removed from restarting")
)

// What albatross says to a command for a unikernel that does not run: once after it was stopped, or while it waits to be started again,
// that it is no more waited for; then that there is none.
const errNoUnikernel = refusal("destroy: not found")

// absent answers destroy and restart of a unikernel that does not run.
func (s *Service) absent(name albatross.Name) (albatross.Payload, error) {
	if s.consoles.takeStopped(name) {
		return unwaited, nil
	}
	return nil, errNoUnikernel
}

// answer carries out one command of vmmd.sock. After a policy is added the client may give another.
func (s *Service) answer(ctx context.Context, conn net.Conn, request albatross.Wire) (more bool) {
	if _, ok := request.Payload.(albatross.StatsInitial); ok {
		s.metrics.commands.WithLabelValues("stats_initial", "ok").Inc()
		s.announce(ctx, conn, request.Header)
		return false
	}
	begin := time.Now()
	ration := s.ration()
	defer ration.release()
	name, reply, err := s.command(ctx, conn, request, ration)
	result := "ok"
	if err != nil {
		result = "failed"
		if _, ok := errors.AsType[refusal](err); ok {
			result = "refused"
		} else {
			s.log.Error("could not carry out a command", "command", name, "unikernel", request.Name.String(), "err", err)
		}
		reply = albatross.Failure(err.Error())
	}
	if reply != nil {
		s.reply(conn, request.Header, reply)
	}
	s.metrics.commands.WithLabelValues(name, result).Inc()
	s.metrics.commandDuration.WithLabelValues(name).Observe(time.Since(begin).Seconds())
	_, added := request.Payload.(albatross.PolicyAdd)
	return added && err == nil
}

// command carries out one command and names it. There is no reply if the command has sent its own.
func (s *Service) command(ctx context.Context, conn net.Conn, request albatross.Wire, ration *ration) (name string, reply albatross.Payload, err error) {
	switch c := request.Payload.(type) {
	case albatross.UnikernelCreate:
		reply, err = s.create(request.Name, c.Config, c.Force, ration)
		return "create", reply, err
	case albatross.UnikernelRestart:
		reply, err = s.restart(request.Name, c.Args, ration)
		return "restart", reply, err
	case albatross.UnikernelDestroy:
		reply, err = s.destroy(request.Name)
		return "destroy", reply, err
	case albatross.UnikernelInfo:
		return "info", s.info(request.Name, c.Generation), nil
	case albatross.UnikernelGet:
		reply, err = s.image(request.Name, c.Level, ration)
		return "get", reply, err
	case albatross.PolicyInfo:
		return "policy_info", s.listPolicies(request.Name), nil
	case albatross.PolicyAdd:
		reply, err = s.addPolicy(request.Name, c.Policy)
		return "policy_add", reply, err
	case albatross.PolicyRemove:
		reply, err = s.removePolicy(request.Name)
		return "policy_remove", reply, err
	case albatross.ConsoleAdd, albatross.ConsoleSubscribe, albatross.ConsoleListInactive,
		albatross.StatsAdd, albatross.StatsRemove, albatross.StatsSubscribe:
		return "other", nil, refusal("unknown command")
	case albatross.Command:
		return s.blockCommand(ctx, conn, request, ration)
	}
	return "other", nil, refusal("this is not a command")
}

// create starts a unikernel; forced, it stops the one of that name first, once all that can be checked is.
func (s *Service) create(name albatross.Name, cfg albatross.Config, force bool, ration *ration) (albatross.Payload, error) {
	if !name.HasLabel() {
		return nil, refuse("create: %s is a path and names no unikernel", name)
	}
	image, err := load(cfg, s.cfg.MaxImage, ration)
	if err != nil {
		return nil, err
	}
	e, unlock := s.lock(name)
	defer unlock()
	if e.live() && !force {
		return nil, refusal("Unikernel with same name is already running")
	}
	if force && e.inst == nil {
		s.consoles.takeStopped(name)
	}
	r := record{Name: name, Typ: cfg.Typ, Args: own(cfg.Args), Digest: image.digest, Boot: s.boot}
	if err := s.replace(e, r, image); err != nil {
		return nil, err
	}
	return created, nil
}

// restart stops a unikernel and starts it again, with new arguments unless they are nil.
func (s *Service) restart(name albatross.Name, args *albatross.Args, ration *ration) (albatross.Payload, error) {
	e, unlock := s.lock(name)
	defer unlock()
	if e.inst == nil {
		return s.absent(name)
	}
	r := e.inst.record
	if args != nil {
		r.Args = own(*args)
	}
	if err := s.rationImage(r.Digest, ration); err != nil {
		return nil, err
	}
	image, err := s.loadBack(r)
	if err != nil {
		return nil, err
	}
	if err := s.replace(e, r, image); err != nil {
		return nil, err
	}
	return created, nil
}

// destroy stops a unikernel, and answers when its process, taps and control group are gone.
func (s *Service) destroy(name albatross.Name) (albatross.Payload, error) {
	e, unlock := s.lock(name)
	defer unlock()
	if e.inst == nil {
		return s.absent(name)
	}
	reply := unwaited
	if e.live() {
		reply = destroyed
	}
	var g errgroup.Group // the disk need not wait for the kernel
	g.Go(func() error { return s.store.dropRecord(name) })
	g.Go(func() error { return s.stop(e.inst) })
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("could not destroy unikernel: %w", err)
	}
	s.forget(e)
	return reply, nil
}

// admit says whether the image can be run as r on this machine as it is now, and may be. If so, what it is to use is booked for it.
func (s *Service) admit(r record, image loaded) error {
	if err := s.allowed(r.Name, r.Args); err != nil {
		return err
	}
	if err := checkImage(image.Image, r.Args, s.cpus, s.targets); err != nil {
		return err
	}
	for _, b := range r.Args.Bridges {
		if _, err := s.bridges.find(bridgeName(b)); err != nil {
			return err
		}
	}
	return s.book(r.Name, r.Args) // others may have booked meanwhile
}

// replace stops what runs under the entry's name, if anything does, and starts r in its place, once all that can be checked is.
func (s *Service) replace(e *entry, r record, image loaded) error {
	if err := s.admit(r, image); err != nil {
		return err
	}
	defer s.rebook(r.Name, e)
	if e.inst != nil {
		defer s.dropImage(r.Digest)                                // start keeps it for itself
		if err := s.keepImage(r.Digest, image.bytes); err != nil { // such as a full disk, before anything is stopped
			return fmt.Errorf("could not create unikernel: %w", err)
		}
		if err := s.stop(e.inst); err != nil {
			return fmt.Errorf("could not stop unikernel: %w", err)
		}
	}
	if err := s.start(e, r, image, 0); err != nil {
		err = errors.Join(err, s.takeBack(e, r.Name))
		if _, ok := errors.AsType[refusal](err); ok {
			return err
		}
		return fmt.Errorf("could not create unikernel: %w", err)
	}
	return nil
}

// takeBack undoes a start that failed. What was stopped for it is forgotten, but what only waited to be started again still does.
func (s *Service) takeBack(e *entry, name albatross.Name) error {
	if e.inst != nil && e.inst.due.Load() {
		e.inst.stopping.Store(false) // it may not be settled yet
		s.markDue(name, e.inst.attempt+1)
		return s.store.saveRecord(e.inst.record)
	}
	if e.inst != nil {
		s.forget(e)
	}
	return errors.Join(s.store.dropRecord(name), s.store.dropHandle(name))
}

// info lists the unikernel of a name, or all in a path, named from there.
func (s *Service) info(name albatross.Name, g albatross.Generation) albatross.Payload {
	reply := albatross.Unikernels{List: []albatross.Running{}, Generation: g}
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, e := range s.names {
		shown, ok := relative(other, name)
		if ok && e.live() {
			reply.List = append(reply.List, albatross.Running{Name: shown, Info: e.inst.info(s.blockSizes(e.inst.record))})
		}
	}
	slices.SortFunc(reply.List, func(a, b albatross.Running) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	return reply
}

// image returns the image of a unikernel, compressed unless the level is 0.
func (s *Service) image(name albatross.Name, level int, ration *ration) (albatross.Payload, error) {
	data, err := s.readImage(name, ration)
	if err != nil || level == 0 {
		return albatross.Image{Image: data}, err
	}
	data, err = albatross.Compress(data, level)
	if errors.Is(err, albatross.ErrValue) {
		return nil, refusal(err.Error())
	}
	return albatross.Image{Compressed: true, Image: data}, err
}

// readImage reads the image of a unikernel from the disk. The name is free again before the image goes anywhere.
func (s *Service) readImage(name albatross.Name, ration *ration) ([]byte, error) {
	e, unlock := s.lock(name)
	defer unlock()
	if e.inst == nil {
		return nil, refusal("get: no unikernel found")
	}
	if err := s.rationImage(e.inst.record.Digest, ration); err != nil {
		return nil, err
	}
	return s.store.readImage(e.inst.record.Digest)
}

// rationImage counts the bytes of an image that is to be read from the disk.
func (s *Service) rationImage(digest []byte, ration *ration) error {
	size, err := s.store.imageSize(digest)
	if err != nil {
		return err
	}
	return ration.take(size)
}

// relative is the name of a unikernel in a reply to a question for asked: unchanged if it is that very name, seen from the path if asked is one.
func relative(name, asked albatross.Name) (albatross.Name, bool) {
	if asked.HasLabel() {
		return name, name == asked
	}
	if !asked.Path().Contains(name.Path()) {
		return albatross.Name{}, false
	}
	labels := append(name.Path().Labels(), name.Label())[len(asked.Path().Labels()):]
	shown, err := albatross.MakeName(labels...)
	return shown, err == nil
}

// info is what is told of a unikernel that runs, whose block devices have these sizes in MB.
func (i *instance) info(sizes []int) albatross.Info {
	a := i.record.Args
	info := albatross.Info{
		Typ: i.record.Typ, Startup: a.Startup, Fail: a.Fail, CPUIDs: slices.Sorted(slices.Values(a.CPUIDs)), Memory: a.Memory, Digest: i.record.Digest,
		Arguments: a.Arguments, Started: i.started, CPUs: a.CPUs, LinuxBootPartition: a.LinuxBootPartition,
	}
	for n, b := range a.Blocks {
		info.Blocks = append(info.Blocks, albatross.InfoBlock{UnikernelDevice: b.Name, HostDevice: hostDevice(b), SectorSize: sectorSize(b), Size: sizes[n]})
	}
	for _, b := range a.Bridges {
		info.Bridges = append(info.Bridges, albatross.InfoBridge{UnikernelDevice: b.Netif, HostDevice: bridgeName(b), MAC: mac(i.record.Name, b)})
	}
	return info
}

// mac is the address of a network device.
func mac(name albatross.Name, b albatross.Bridge) net.HardwareAddr {
	if b.MAC != nil {
		return b.MAC
	}
	return albatross.MAC(name, b.Netif)
}
