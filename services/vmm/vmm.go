// Package vmm starts and stops the instances of one host, by the host's albatross daemon, and writes down what runs there.
//
// It hears leased and says started, and hears drained and says stopped. Its state is the daemon's: it asks what runs. The
// record of its host in the bucket fulmar-hosts is what it saw last; beside that it only caches images, on disk by digest,
// and passes on the lines of the instances' consoles, and what the instances use, of which it keeps ten minutes in memory.
//
// The invariant it guards: an instance is created only before its deployment's deadline, which is looked at right before
// each create, and what is stopped is what drained names and nothing else. Names are never used for another instance, so
// whatever comes late or twice hits the same one.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fulmar/albatross"
	"fulmar/albatross/influx"
	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Defaults of a configuration.
const (
	DefaultCacheBytes = 1 << 30
	DefaultPoll       = time.Second
	DefaultConsoles   = 16 // of a remote daemon: an endpoint takes 32 connections of one path, and vmm needs some for the rest
)

// stopTime bounds one destroy: a daemon that does not answer is asked again.
const stopTime = 30 * time.Second

// Config says which host vmm serves and how.
type Config struct {
	Host       string        // its name
	Dir        string        // run directory of its albatross daemon: sockets are in util/
	Remote     *Remote       // how its daemon is asked in place of the sockets; nil: by them
	Path       string        // path of the names it gives to albatross, as "a:b"; empty: the root
	Cache      string        // directory for images; made if it is missing
	CacheBytes int64         // of images in it at most; 0 means DefaultCacheBytes
	Targets    []string      // that the daemon runs; nil means spt
	CPUs       []int         // CPU ids of units that name none; a real albatrossd wants some
	Poll       time.Duration // between two looks at what runs; 0 means DefaultPoll
	Influx     influx.Config // where statistics go beside the bus; no target: nowhere
}

// Remote is a daemon on another machine.
type Remote struct {
	Client   *albatross.Client
	Consoles int // that are followed at once at most: each is a connection; 0 means DefaultConsoles
}

// InfluxFlags are the flags of every command that has a vmm in it.
type InfluxFlags struct {
	Influx      string `env:"VMM_INFLUX" placeholder:"URL" help:"Where what unikernels use goes in influx line protocol: tcp://HOST:PORT, or http(s)://HOST:PORT/write?db=NAME. Empty: nowhere."`
	InfluxToken string `env:"VMM_INFLUX_TOKEN" placeholder:"TOKEN" help:"Token of InfluxDB 2, over HTTP."`
}

// Config is what the flags say.
func (f InfluxFlags) Config() influx.Config {
	return influx.Config{Target: f.Influx, Token: f.InfluxToken}
}

// Service is vmm of one host.
type Service struct {
	bus     *bus.Bus
	log     *slog.Logger
	config  Config
	heads   *bus.View[*fulmarv1.Head]
	path    albatross.Path
	client  *albatross.Client
	images  *images
	watcher *watcher
	stats   *statistics
	sink    *influx.Sink // nil: none
	metrics metrics
}

// New makes vmm of a host, and its cache directory. It starts nothing.
func New(b *bus.Bus, c Config, reg prometheus.Registerer) (*Service, error) {
	if err := messages.CheckName("host", c.Host); err != nil {
		return nil, err
	}
	path, err := albatross.ParsePath(c.Path)
	if err != nil {
		return nil, err
	}
	if c.Targets == nil {
		c.Targets = []string{"spt"}
	}
	if c.Poll <= 0 {
		c.Poll = DefaultPoll
	}
	if c.CacheBytes <= 0 {
		c.CacheBytes = DefaultCacheBytes
	}
	if err := os.MkdirAll(c.Cache, dirMode); err != nil {
		return nil, fmt.Errorf("make image cache: %w", err)
	}
	s := &Service{bus: b, log: b.Log, config: c, heads: b.Heads.View(), path: path, client: &albatross.Client{Dir: c.Dir}, metrics: newMetrics(reg)}
	if c.Remote != nil {
		s.client = c.Remote.Client
	}
	if c.Influx.Target != "" {
		c.Influx.Log, c.Influx.Count = b.Log, s.metrics.influxed
		if s.sink, err = influx.New(c.Influx); err != nil {
			return nil, err
		}
	}
	s.stats = newStatistics(b, c.Host, path, s.client, s.metrics, s.sink)
	if reg != nil {
		reg.MustRegister(newUnikernels(c.Host, s.stats.now))
	}
	s.images = &images{store: b.Images, log: b.Log, dir: c.Cache, limit: c.CacheBytes, metrics: s.metrics}
	s.watcher = newWatcher(b, c, path, s.client, s.metrics, s.stats.looked)
	if c.Remote == nil { // a daemon behind a socket is on this machine
		if s.watcher.machine, err = thisMachine(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run starts, stops and watches until ctx ends, which is no error. The instances run on.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.heads.Run(ctx) })
	g.Go(func() error {
		if err := s.heads.CaughtUp(ctx); err != nil { // who was away may have been overtaken by now
			return unlessEnded(ctx, err)
		}
		return s.bus.Run(ctx, bus.Step{
			Name: "vmm-start-" + s.config.Host, Hears: []messages.Verb{messages.Leased}, Host: s.config.Host, Handle: s.start,
		})
	})
	g.Go(func() error {
		return s.bus.Run(ctx, bus.Step{
			Name: "vmm-stop-" + s.config.Host, Hears: []messages.Verb{messages.Drained}, Host: s.config.Host, Handle: s.stop,
		})
	})
	g.Go(func() error { return s.watcher.run(ctx) })
	g.Go(func() error { return s.stats.run(ctx) })
	if s.sink != nil {
		g.Go(func() error { return s.sink.Run(ctx) })
	}
	return g.Wait()
}

// unlessEnded is no error once ctx has ended.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// start makes the instances of a leased deployment run, unless something newer of the stack is live or staged: then it
// gives way to it, also in the middle of a create that gets no answer.
func (s *Service) start(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	wanted, release, err := s.wanted(ctx, e.GetDeployment())
	if err != nil {
		return "", err
	}
	defer release()
	err = s.run(wanted, e)
	if wanted.Err() != nil && ctx.Err() == nil {
		err = context.Cause(wanted)
	}
	return messages.Started, err
}

// run gets the images of a leased deployment and creates its instances, in lease order, but for those that were kept and
// run. One that was kept and did not run is started again: then the event says no longer that it was kept.
func (s *Service) run(ctx context.Context, e *fulmarv1.Event) error {
	d := e.GetDeployment()
	starts, err := Starts(d, s.config.CPUs)
	if err != nil {
		return err
	}
	leased := e.GetTime().AsTime()
	missing, again, err := s.missing(ctx, starts, leased)
	if err != nil {
		return err
	}
	for _, st := range missing {
		if err := s.create(ctx, st, leased, d.GetDeadline().AsTime()); err != nil {
			return err
		}
	}
	for _, unit := range again {
		unitOf(d, unit).Kept = false
	}
	if len(again) > 0 { // a look that began before may still be about to write that they ended
		return s.watcher.look(ctx)
	}
	return s.watcher.revise(ctx, missing)
}

// missing gives the instances to create, with their images, and the units whose instances were kept and are started again
// by this deployment, be it by a former try that could not say so. One that was kept runs, as a rule, and its image need be
// nowhere any more.
func (s *Service) missing(ctx context.Context, starts []Start, leased time.Time) (missing []Start, again []string, err error) {
	for _, st := range starts {
		if st.Kept {
			have, runs, err := s.runs(ctx, st)
			if err != nil {
				return nil, nil, err
			}
			if !runs || startedSince(have, leased) {
				again = append(again, st.Unit)
			}
			if runs {
				continue
			}
		}
		if st.Config.Image, err = s.images.get(ctx, st.Image); err != nil {
			return nil, nil, fmt.Errorf("unit %s: %w", st.Unit, err)
		}
		missing = append(missing, st)
	}
	return missing, again, nil
}

// create makes one instance run, unless it does already.
func (s *Service) create(ctx context.Context, st Start, leased, deadline time.Time) error {
	name, err := nameOf(s.path, st.Name)
	if err != nil {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_START, "unit %s cannot be started: %w", st.Unit, err)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	begin := time.Now()
	if begin.After(deadline) {
		return fmt.Errorf("start %s: %w", st.Name, messages.ErrLate)
	}
	err = s.client.Create(ctx, name, st.Config)
	if errors.Is(err, albatross.ErrExists) {
		_, runs, err := s.runs(ctx, st)
		if err == nil && !runs {
			err = fmt.Errorf("start %s: it ran and has exited", st.Name)
		}
		return err
	}
	if err != nil {
		s.metrics.creates.WithLabelValues("failed").Inc()
		return st.Judge(err, leased, time.Now())
	}
	s.metrics.creates.WithLabelValues("created").Inc()
	s.metrics.createSeconds.Observe(time.Since(begin).Seconds())
	s.watcher.created(st.Name, begin)
	s.log.Info("unikernel was created", "unikernel", st.Name, "dur", time.Since(begin))
	return nil
}

// runs reports whether an instance runs as it should, and what the daemon tells of it then. It refuses one that runs otherwise.
func (s *Service) runs(ctx context.Context, st Start) (have albatross.Info, runs bool, err error) {
	name, err := nameOf(s.path, st.Name)
	if err != nil {
		return have, false, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_START, "unit %s cannot be started: %w", st.Unit, err)
	}
	list, err := s.client.Info(ctx, name)
	if errors.Is(err, albatross.ErrNotFound) {
		return have, false, nil
	}
	if err != nil {
		return have, false, fmt.Errorf("look for %s: %w", st.Name, err)
	}
	for _, r := range list {
		if r.Name != name {
			continue
		}
		if what := st.Differs(r.Info); what != "" {
			return have, false, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_START, "unit %s cannot be started: %s runs already and is not the same: %s", st.Unit, st.Name, what)
		}
		return r.Info, true, nil
	}
	return have, false, nil
}

// stop destroys the dying instances of a deployment. What is not there is stopped.
func (s *Service) stop(ctx context.Context, e *fulmarv1.Event) (messages.Verb, error) {
	for _, i := range e.GetDeployment().GetDying() {
		if _, _, _, ok := messages.ParseInstance(i.GetName()); !ok {
			s.log.Error("event named no instance to stop", "unikernel", i.GetName())
			continue
		}
		if err := s.destroy(ctx, i.GetName()); err != nil {
			return "", err
		}
	}
	if err := s.watcher.look(ctx); err != nil { // so that nobody is told of an instance that is gone
		s.log.Warn("host was not looked at", "err", err)
	}
	return messages.Stopped, nil
}

func (s *Service) destroy(ctx context.Context, instance string) error {
	name, err := nameOf(s.path, instance)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err = s.client.Destroy(ctx, name)
	if errors.Is(err, albatross.ErrNotFound) {
		return nil
	}
	if err != nil {
		s.metrics.destroys.WithLabelValues("failed").Inc()
		return fmt.Errorf("stop %s: %w", instance, err)
	}
	s.metrics.destroys.WithLabelValues("destroyed").Inc()
	s.log.Info("unikernel was destroyed", "unikernel", instance)
	return nil
}

// nameOf is the name of an instance as albatross knows it.
func nameOf(path albatross.Path, instance string) (albatross.Name, error) {
	label, err := albatross.MakeName(instance)
	if err != nil {
		return albatross.Name{}, err
	}
	return path.Join(label), nil
}
