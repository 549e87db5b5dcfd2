package host

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// The replies of albatross.
const (
	policyAdded   = albatross.Text("added policy")
	policySame    = albatross.Text("no modification of policy")
	policyRemoved = albatross.Text("removed policy")
)

// unlimited is what albatross's clients read as no limit.
const unlimited = 1<<62 - 1

// ledger is the resources, for one at a time. What is on the disk of them is written before anybody sees the change.
type ledger struct {
	mu sync.Mutex
	*resources
}

// openLedger reads the policies from the disk. If the machine has one, it is that of the root unless one was set.
func openLedger(s *store, machine *albatross.Policy, log *slog.Logger) (*ledger, error) {
	l := &ledger{resources: newResources()}
	policies, err := s.loadPolicies()
	if err != nil {
		return nil, err
	}
	for _, p := range policies {
		l.policies[p.Name.Path()] = p.Policy
	}
	if l.blocks, err = s.loadBlocks(log); err != nil {
		return nil, err
	}
	if _, set := l.policies[albatross.Path{}]; machine != nil && !set {
		l.policies[albatross.Path{}], l.machine = *machine, true
	}
	return l, nil
}

// machinePolicy is all that this machine has.
func (s *Service) machinePolicy() (*albatross.Policy, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("look at the machine's memory: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.cfg.StateDir, &disk); err != nil {
		return nil, fmt.Errorf("look at the disk: %w", err)
	}
	bridges, err := s.bridges.list()
	if err != nil {
		return nil, err
	}
	free := int(disk.Bavail * uint64(disk.Bsize) >> 20)
	return &albatross.Policy{
		CPUIDs: s.cpus, Unikernels: unlimited, Memory: int(info.Totalram * uint64(info.Unit) >> 20), Block: &free, Bridges: bridges,
	}, nil
}

// list returns the names of the bridges that there are.
func (b *bridges) list() (names []string, err error) {
	links, err := b.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	for _, link := range links {
		if bridge, ok := link.(*netlink.Bridge); ok {
			names = append(names, bridge.Attrs().Name)
		}
	}
	return sorted(names), nil
}

// listPolicies answers which policies there are in a path; that of a name is its path's.
func (s *Service) listPolicies(name albatross.Name) albatross.Payload {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.list(name.Path())
}

// addPolicy sets the policy of a path, and answers when that is on the disk.
func (s *Service) addPolicy(name albatross.Name, p albatross.Policy) (albatross.Payload, error) {
	if name.HasLabel() {
		return nil, refuse("policy add: %s names a unikernel and no path", name)
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	path := name.Path()
	old, set := s.ledger.policies[path]
	if set && samePolicy(old, p) {
		return policySame, nil
	}
	if err := s.ledger.checkPolicy(path, p); err != nil {
		return nil, err
	}
	machine := s.ledger.machine
	s.ledger.policies[path], s.ledger.machine = p, machine && !path.IsRoot()
	if err := s.store.savePolicies(s.ledger.stored()); err != nil {
		s.ledger.restore(path, old, set, machine)
		return nil, err
	}
	s.log.Info("policy set", "path", path.String())
	return policyAdded, nil
}

// removePolicy removes the policy of a path, and answers when that is on the disk. That of the machine is back when host starts again.
func (s *Service) removePolicy(name albatross.Name) (albatross.Payload, error) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	path := name.Path()
	old, set := s.ledger.policies[path]
	if !set || name.HasLabel() {
		return nil, refusal("unknown policy")
	}
	machine := s.ledger.machine
	delete(s.ledger.policies, path)
	s.ledger.machine = machine && !path.IsRoot()
	if err := s.store.savePolicies(s.ledger.stored()); err != nil {
		s.ledger.restore(path, old, true, machine)
		return nil, err
	}
	s.log.Info("policy removed", "path", path.String())
	return policyRemoved, nil
}

// restore undoes a change that could not be written.
func (l *ledger) restore(path albatross.Path, old albatross.Policy, set, machine bool) {
	l.machine = machine
	if set {
		l.policies[path] = old
		return
	}
	delete(l.policies, path)
}

// allowed says whether a unikernel may run with args by the policies that hold now.
func (s *Service) allowed(name albatross.Name, args albatross.Args) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if err := s.ledger.checkUnikernel(name, args); err != nil {
		return err
	}
	if len(s.ledger.cpus(name, args, s.cpus)) == 0 {
		return refusal("no CPUids of this machine are allowed by policy")
	}
	return nil
}

// book counts what a unikernel is to use, if policy allows it.
func (s *Service) book(name albatross.Name, args albatross.Args) error {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.ledger.book(name, args)
}

// unbook counts what a unikernel uses no more.
func (s *Service) unbook(name albatross.Name) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	delete(s.ledger.booked, name)
}

// rebook counts what the entry of a name, which is locked, holds after what was booked for another instance could not be had.
func (s *Service) rebook(name albatross.Name, e *entry) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if e.inst == nil {
		delete(s.ledger.booked, name)
		return
	}
	s.ledger.booked[name] = e.inst.record.Args
}

// pinned lists the CPUs that a unikernel is to run on; none means that it may on all.
func (s *Service) pinned(name albatross.Name, args albatross.Args) []int {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	ids := s.ledger.cpus(name, args, s.cpus)
	if len(ids) == len(s.cpus) && len(args.CPUIDs) == 0 {
		return nil
	}
	return ids
}
