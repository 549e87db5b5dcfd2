package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"fulmar/albatross"
)

const (
	statsTime = 10 * time.Second // between two statistics of a unikernel, unless configured
	othersMax = 1024             // processes that clients have asked to be watched
)

// watched is a process of which there are statistics.
type watched struct {
	name albatross.Name
	identity
	taps []albatross.Tap
}

// statistic is what is told of one process.
type statistic struct {
	name albatross.Name
	albatross.Stats
}

// statistics are gathered when somebody wants them, and once for all who want them at about the same time.
type statistics struct {
	interval time.Duration
	bootTime int64
	gather   func() ([]statistic, error)

	mu     sync.Mutex
	last   []statistic
	at     time.Time
	others map[albatross.Name]watched // processes that are no unikernels of ours
}

// latest returns statistics that are not older than half of the interval.
func (st *statistics) latest() ([]statistic, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if time.Since(st.at) < st.interval/2 {
		return st.last, nil
	}
	all, err := st.gather()
	if err != nil {
		return nil, err
	}
	st.last, st.at = all, time.Now()
	return all, nil
}

// gatherStats reads the statistics of all that is watched, by name. A process that has ended has none. The caller holds s.stats.mu.
func (s *Service) gatherStats() ([]statistic, error) {
	targets := s.watchedUnikernels()
	for _, w := range s.stats.others {
		targets = append(targets, w)
	}
	slices.SortFunc(targets, func(a, b watched) int { return strings.Compare(a.name.String(), b.name.String()) })
	counters, err := s.bridges.counters()
	if err != nil {
		return nil, err
	}
	var all []statistic
	for _, w := range targets {
		usage, memory, err := procUsage(w.identity, s.stats.bootTime)
		if err != nil {
			if !errors.Is(err, errNotThere) {
				s.log.Debug("could not read statistics", "unikernel", w.name.String(), "err", err) // it ends just now
			}
			continue
		}
		one := statistic{name: w.name, Stats: albatross.Stats{Rusage: usage, Memory: &memory}}
		for _, t := range w.taps {
			if i, there := counters[t.Tap]; there {
				i.Bridge = t.Bridge
				one.Interfaces = append(one.Interfaces, i)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// watchedUnikernels lists the unikernels that run.
func (s *Service) watchedUnikernels() (all []watched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.names {
		if !e.live() {
			continue
		}
		w := watched{name: name, identity: e.inst.proc.identity}
		for n, b := range e.inst.record.Args.Bridges {
			if n < len(e.inst.taps) {
				w.taps = append(w.taps, albatross.Tap{Bridge: b.Netif, Tap: e.inst.taps[n]})
			}
		}
		all = append(all, w)
	}
	return all
}

// answerStats carries out one command of stat.sock. A subscription lasts until the client says or closes anything, or does not take
// statistics for lineTime.
func (s *Service) answerStats(ctx context.Context, conn net.Conn, request albatross.Wire) (more bool) {
	switch c := request.Payload.(type) {
	case albatross.StatsSubscribe:
		s.reply(conn, request.Header, albatross.Text("subscribed"))
		s.followStats(ctx, conn, request.Name)
	case albatross.StatsAdd:
		s.reply(conn, request.Header, s.addStats(request.Name, c))
	case albatross.StatsRemove:
		s.stats.mu.Lock()
		delete(s.stats.others, request.Name)
		s.stats.mu.Unlock()
		s.reply(conn, request.Header, albatross.Text("removed"))
	case albatross.StatsInitial:
		s.reply(conn, request.Header, albatross.Failure("unexpected message initial"))
	default:
		s.reply(conn, request.Header, albatross.Failure("unexpected command"))
	}
	return false
}

// addStats watches another process. That there is none is no error, as with albatross; but then nothing is told of it, also not of one
// that gets its number later.
func (s *Service) addStats(name albatross.Name, c albatross.StatsAdd) albatross.Payload {
	start, err := startTime(c.PID)
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	switch _, again := s.stats.others[name]; {
	case !name.HasLabel():
		return albatross.Failure("path used instead of name")
	case !again && len(s.stats.others) >= othersMax:
		return albatross.Failure(fmt.Sprintf("more than %d processes are watched already", othersMax))
	case err == nil:
		s.stats.others[name] = watched{name: name, identity: identity{PID: c.PID, Start: start}, taps: c.Taps}
	}
	return albatross.Text("added")
}

// followStats sends the statistics of a name or of all in a path, now and every interval.
func (s *Service) followStats(ctx context.Context, conn net.Conn, asked albatross.Name) {
	left, leave := hears(conn, anything)
	defer leave()
	ticker := time.NewTicker(s.stats.interval)
	defer ticker.Stop()
	for {
		all, err := s.stats.latest()
		if err != nil {
			s.log.Warn("could not gather statistics", "err", err)
		}
		for _, one := range all {
			if shown, ok := seenFrom(one.name, asked); ok && !s.sendStats(conn, shown, one.Stats) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-left:
			return
		case <-ticker.C:
		}
	}
}

// seenFrom is the name in statistics that were asked for: from the path of what was asked for, also when that is one unikernel.
func seenFrom(name, asked albatross.Name) (albatross.Name, bool) {
	if asked.HasLabel() && name != asked {
		return albatross.Name{}, false
	}
	return asked.Path().Relative(name)
}

// sendStats sends statistics, and says whether the client took them.
func (s *Service) sendStats(conn net.Conn, name albatross.Name, stats albatross.Stats) bool {
	_ = conn.SetWriteDeadline(time.Now().Add(lineTime))
	err := albatross.WriteData(conn, name, stats)
	if errors.Is(err, albatross.ErrValue) {
		s.log.Error("could not encode statistics", "unikernel", name.String(), "err", err)
		return true
	}
	return err == nil
}
