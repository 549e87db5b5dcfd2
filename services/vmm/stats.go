package vmm

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"fulmar/albatross"
	"fulmar/albatross/influx"
	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// From the end of one subscription to statistics to the next: it doubles as long as none of them tells anything.
const (
	firstSubscribe = time.Second
	lastSubscribe  = time.Minute
)

// statistics follows what the daemon tells of what everything below the path uses, by one subscription, and passes it on: to
// the bus, to Prometheus, to who asks for the last minutes, and to influx.
type statistics struct {
	bus     *bus.Bus
	log     *slog.Logger
	host    string
	path    albatross.Path
	client  *albatross.Client
	metrics metrics
	sink    *influx.Sink // nil: none

	told bool // the subscription in hand has told something; of run
	mute bool // that nothing is told was logged; of run

	mu     sync.Mutex
	latest map[string]*fulmarv1.Stats // of each instance that runs, as far as it is known now
	past   history
}

func newStatistics(b *bus.Bus, host string, path albatross.Path, client *albatross.Client, m metrics, sink *influx.Sink) *statistics {
	return &statistics{
		bus: b, log: b.Log, host: host, path: path, client: client, metrics: m, sink: sink,
		latest: map[string]*fulmarv1.Stats{}, past: history{limit: historyBytes},
	}
}

// run subscribes until ctx ends. A daemon without statistics is asked again from time to time: its socket may come.
func (s *statistics) run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	for wait := firstSubscribe; ; wait = min(2*wait, lastSubscribe) {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		s.told = false
		err := s.client.SubscribeStats(ctx, s.path.Name(), func(name albatross.Name, m albatross.Stats) error {
			s.heard(name, m)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		s.forget()
		if s.told {
			wait = firstSubscribe
		} else if !s.mute {
			s.mute = true
			s.log.Info("daemon told no statistics, it is asked again from time to time", "err", err)
		}
		t.Reset(wait)
	}
}

// heard passes on one sample, named from the path that was asked.
func (s *statistics) heard(name albatross.Name, m albatross.Stats) {
	if s.mute {
		s.log.Info("daemon told statistics again")
	}
	s.told, s.mute = true, false
	now := time.Now()
	if s.sink != nil {
		s.sink.Add(vmName(name), m, now)
	}
	if _, _, _, ours := messages.ParseInstance(name.Label()); !ours || !name.Path().IsRoot() {
		return
	}
	sample := Sample(s.host, name.Label(), now, m, os.Getpagesize())
	body, err := proto.Marshal(sample)
	if err != nil {
		s.log.Error("statistics were not encoded", "unikernel", name.Label(), "err", err)
		return
	}
	s.metrics.samples.Inc()
	s.mu.Lock()
	s.latest[sample.GetInstance()] = sample
	s.past.add(entry{at: now, instance: sample.GetInstance(), body: body})
	s.mu.Unlock()
	if !s.bus.NC.IsConnected() {
		return // nobody wants it later
	}
	if err := s.bus.NC.Publish(messages.StatsSubject(s.host, sample.GetInstance()), body); err != nil {
		s.log.Debug("statistics were not published", "unikernel", sample.GetInstance(), "err", err)
	}
}

// vmName is what albatross-influx calls a unikernel.
func vmName(n albatross.Name) string {
	if n.HasLabel() {
		return n.Label()
	}
	return n.String()
}

// forget lets go what is not known any more.
func (s *statistics) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.latest)
}

// looked is told which instances ran at a time: what is of others and from before then is of those that are gone.
func (s *statistics) looked(running map[string]bool, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.latest, func(name string, m *fulmarv1.Stats) bool { return !running[name] && m.GetTime().AsTime().Before(at) })
}

// now gives the last sample of each instance that runs.
func (s *statistics) now() []*fulmarv1.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.latest))
}

// answer gives the samples that a request asks for.
func (s *statistics) answer(r *fulmarv1.StatsRequest) (*fulmarv1.StatsReply, error) {
	if _, _, _, ok := messages.ParseInstance(r.GetInstance()); r.GetInstance() != "" && !ok {
		return nil, fmt.Errorf("instance %q: want STACK.UNIT.GENERATION, as web.web.42", r.GetInstance())
	}
	since, n := time.Now().Add(-historyTime), int(r.GetSamples())
	if r.GetSince() == nil {
		n = max(n, 1)
	} else if asked := r.GetSince().AsTime(); asked.After(since) {
		since = asked
	}
	wanted := func(instance string) bool {
		return (r.GetInstance() == "" || instance == r.GetInstance()) && (r.GetStack() == "" || strings.HasPrefix(instance, r.GetStack()+"."))
	}
	s.mu.Lock()
	found := s.past.find(wanted, since, n)
	s.mu.Unlock()
	reply := &fulmarv1.StatsReply{}
	for _, e := range found {
		m := &fulmarv1.Stats{}
		if err := proto.Unmarshal(e.body, m); err != nil {
			return nil, fmt.Errorf("read sample of %s: %w", e.instance, err)
		}
		reply.Samples = append(reply.Samples, m)
	}
	return reply, nil
}
