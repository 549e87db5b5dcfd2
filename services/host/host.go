// Package host is a daemon that serves albatross's protocol: it runs Solo5 unikernels on this machine, without OCaml and without Solo5.
//
// It hears commands on the Unix socket <run>/util/vmmd.sock (unikernels: create, force create, restart, destroy, get, info; policies: add,
// remove, info; block devices: add, set, dump, remove, info) and subscriptions on <run>/util/console.sock and <run>/util/stat.sock, and
// answers in the words of albatross; it also serves albatross's own daemon of statistics, and reads consoles that albatross's daemon asks it to.
// It speaks to nobody else and knows nothing of the bus. Images of the target spt always run, those of hvt
// where there is /dev/kvm, looked after by a process of fulmar-hvt or of this same program.
//
// A console keeps the last lines that a unikernel has written, and at its end one of host's: "fulmar: exited with status 3",
// "fulmar: killed by signal SIGSYS" or "fulmar: exited, status unknown". By then info does not list the unikernel any more.
//
// State lives in three places. What should run, with its images, block devices and policies, is on disk in the state directory, synced before a create is
// answered. How to find what runs (pid and start time) stands beside it and is good for this boot only. The rest belongs to the
// unikernels' processes and goes with them: the process is the unikernel, its taps are held by nothing but itself, its standard
// output is a FIFO that it keeps open in both directions (the lines that host has read it leaves to the next one, but not when it is killed). So host can be stopped, killed and upgraded while they run, and adopts them
// when it comes back; after a boot of the machine it starts them again.
//
// The invariant: of each name at most one process runs, and everything that exists for it (process, control group, FIFO, user
// id, taps, and what the table of bridges has of those) is either explained by a file in the state directory or gone when host has started. A process is let run only when it is in
// its control group, pinned, and written down: before that it waits at a gate that closes with host.
package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/solo5"
)

// Config says where host keeps what.
type Config struct {
	RunDir     string        // its sockets are in util/, FIFOs in fifo/; best on a tmpfs
	StateDir   string        // must stay through a boot
	CgroupRoot string        // where control groups are mounted, v2 or v1; empty means /sys/fs/cgroup
	Cgroup     string        // parent of the unikernels' groups, below the root; it holds nothing else. It and RunDir are no other host's
	UIDBase    int           // first of the 65,536 user and group ids of unikernels, each of which has one of its own
	MaxImage   int           // bytes of an image and of a request; 0 means 256 MB
	StatsEvery time.Duration // between two statistics of a unikernel; 0 means 10 s
	RootPolicy bool          // all unikernels together may use no more than this machine has when host starts, and only bridges that there are then

	// Tender looks after virtual machines: an executable whose main calls solo5.HVTMain first, and which every user may run. Empty means
	// the fulmar-hvt that lies beside the one that runs, or that one itself.
	Tender string

	VMMD, Console, Stats net.Listener // of systemd; nil means that host makes the sockets
}

// withDefaults fills in what is not set.
func (c Config) withDefaults() Config {
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/sys/fs/cgroup"
	}
	if c.StatsEvery == 0 {
		c.StatsEvery = statsTime
	}
	if c.MaxImage == 0 {
		c.MaxImage = albatross.DefaultMaxFrame
	}
	return c
}

// Service is the daemon.
type Service struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	boot     string
	cpus     []int
	targets  []solo5.Target
	program  *os.File // that looks after virtual machines; nil if there are none
	store    *store
	cgroups  *cgroups
	bridges  *bridges
	ledger   *ledger
	reserved []*os.File // open directories that are locked
	consoles *consoles
	stats    *statistics
	slots    *slots
	ready    chan struct{}
	mending  chan struct{}     // has taps looked at
	self     *albatross.Client // for Healthy

	mu      sync.Mutex
	names   map[albatross.Name]*entry
	refs    map[string]int // of images, by digest
	changes changes        // of what runs

	budget budget

	watching sync.WaitGroup  // one for each instance, and one for the bridges
	watchCtx context.Context // ends after the last command is answered
}

// New opens the state and looks at the machine. It runs, adopts and removes nothing.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (_ *Service, err error) {
	cfg = cfg.withDefaults()
	if cfg.RunDir == "" || cfg.StateDir == "" {
		return nil, errors.New("host needs a run directory and a state directory")
	}
	if err := errors.Join(checkParent(cfg.Cgroup), checkUIDs(cfg.UIDBase)); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, log: log,
		consoles: newConsoles(), slots: newSlots(), ready: make(chan struct{}), mending: make(chan struct{}, 1),
		self:  &albatross.Client{Dir: cfg.RunDir},
		names: make(map[albatross.Name]*entry), refs: make(map[string]int), changes: newChanges(),
	}
	if s.boot, err = bootID(); err != nil {
		return nil, err
	}
	s.stats = &statistics{interval: cfg.StatsEvery, gather: s.gatherStats, others: make(map[albatross.Name]watched)}
	if s.stats.bootTime, err = bootTime(); err != nil {
		return nil, err
	}
	if s.cpus, err = machineCPUs(); err != nil {
		return nil, err
	}
	for _, dir := range []string{"util", "fifo"} {
		if err := os.MkdirAll(filepath.Join(cfg.RunDir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("make run directory: %w", err)
		}
	}
	if s.store, err = openStore(cfg.StateDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := s.reserve("run directory "+cfg.RunDir, cfg.RunDir); err != nil {
		return nil, err
	}
	mounts, err := findMounts(cfg.CgroupRoot)
	if err != nil {
		return nil, err
	}
	if err := checkAlone(mounts, cfg.Cgroup); err != nil {
		return nil, err
	}
	groups, missing := openCgroups(mounts, cfg.Cgroup)
	if err := s.reserve("control group "+cfg.Cgroup, groups.parents()...); err != nil {
		return nil, err
	}
	s.cgroups = groups // and before they are another host's
	for _, m := range missing {
		log.Warn("control group controller was not available, unikernels go without its limit", "reason", m)
	}
	if err := s.findTargets(); err != nil {
		return nil, err
	}
	if s.bridges, err = newBridges(); err != nil {
		return nil, err
	}
	var root *albatross.Policy
	if cfg.RootPolicy {
		if root, err = s.machinePolicy(); err != nil {
			return nil, err
		}
	}
	if s.ledger, err = openLedger(s.store, root, log); err != nil {
		return nil, err
	}
	s.metrics, err = newMetrics(reg, s.running)
	return s, err
}

// close ends what New opened.
func (s *Service) close() error {
	if s.bridges != nil {
		s.bridges.close()
	}
	if s.cgroups != nil {
		s.cgroups.close()
	}
	return errors.Join(closeFile(s.program), s.unreserve(), s.store.close())
}

// findTargets finds out what kinds of guests this machine can run: those of hvt need /dev/kvm.
func (s *Service) findTargets() (err error) {
	s.targets = []solo5.Target{solo5.SPT}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		s.log.Info("found no way to run virtual machines", "err", err)
		return nil
	}
	self, err := os.Executable()
	if err == nil {
		s.program, err = os.Open(cmp.Or(s.cfg.Tender, tenderBeside(self)))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the tender of virtual machines: %w", err), kvm.Close())
	}
	s.targets = append(s.targets, solo5.HVT)
	return kvm.Close()
}

// tenderBeside is the fulmar-hvt beside this program, which is smaller and so costs each virtual machine less; or this program, if there
// is none that every user may run.
func tenderBeside(self string) string {
	beside := filepath.Join(filepath.Dir(self), "fulmar-hvt")
	if file, err := os.Stat(beside); err == nil && file.Mode().IsRegular() && file.Mode().Perm()&0o001 != 0 {
		return beside
	}
	return "/proc/self/exe"
}

// Targets lists the targets whose images can be run: spt, and hvt where there is /dev/kvm.
func (s *Service) Targets() (names []string) {
	for _, t := range s.targets {
		names = append(names, t.String())
	}
	return names
}

// machineCPUs lists the CPUs that this process may use.
func machineCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("list CPUs: %w", err)
	}
	var ids []int
	for id := range len(set) * 64 {
		if set.IsSet(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Ready is closed when what ran before is adopted and its sockets are served.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Healthy asks the daemon, as any client would, what runs, and returns an error if no answer comes.
func (s *Service) Healthy(ctx context.Context) error {
	select {
	case <-s.ready:
	default:
		return errors.New("host has not started yet")
	}
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	_, err := s.self.Info(ctx, albatross.Name{})
	return err
}

// healthTime is how long host may take to answer itself.
const healthTime = 5 * time.Second

// Run adopts what runs, starts what should, and serves until ctx ends. The unikernels run on.
func (s *Service) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	watchCtx, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		s.watching.Wait()
		if lerr := s.leaveConsoles(); lerr != nil {
			s.log.Warn("could not leave the consoles to the next host", "err", lerr)
		}
	}()
	defer stopWatching()
	s.watchCtx = watchCtx

	if err := s.takeConsoles(); err != nil {
		s.log.Warn("could not take over the consoles of the host before", "err", err)
	}
	s.watching.Go(func() { s.attend(watchCtx) }) // from now on no bridge comes unheard
	if err := s.adopt(); err != nil {
		return err
	}
	vmmd, console, stats, err := s.listen()
	if err != nil {
		return err
	}
	s.watching.Go(func() { s.mendTaps(watchCtx) })
	close(s.ready)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serve(ctx, vmmd, s.answer) })
	g.Go(func() error { return s.serve(ctx, console, s.answerConsole) })
	g.Go(func() error { return s.serve(ctx, stats, s.answerStats) })
	return g.Wait()
}

// listen makes the sockets that systemd did not hand over.
func (s *Service) listen() (vmmd, console, stats net.Listener, err error) {
	vmmd, console, stats = s.cfg.VMMD, s.cfg.Console, s.cfg.Stats
	for _, l := range []struct {
		to   *net.Listener
		name string
	}{{&vmmd, "vmmd.sock"}, {&console, "console.sock"}, {&stats, "stat.sock"}} {
		if *l.to != nil {
			continue
		}
		if *l.to, err = listenUnix(filepath.Join(s.cfg.RunDir, "util", l.name)); err != nil {
			return nil, nil, nil, err
		}
	}
	return vmmd, console, stats, nil
}

// listenUnix makes a socket that only this user and group can connect to. One that a killed host left behind is replaced, one that
// answers is not.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: another daemon serves it", path), conn.Close())
	}
	if err := removeFile(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("protect %s: %w", path, err), l.Close())
	}
	return l, nil
}
