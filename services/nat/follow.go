package nat

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"fulmar/firewall"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	quiet    = 50 * time.Millisecond  // without a change of the records, before what is old is removed
	unquiet  = time.Second            // after which it is removed without quiet
	breather = 100 * time.Millisecond // between two looks at what others changed
	sweep    = time.Minute            // between two looks without any sign
	retry    = 250 * time.Millisecond // after a look that failed, doubled each time
	retryMax = 5 * time.Second
	share    = 20 // a look takes at most this part of the time while others change the firewall without end

	busPatience = 500 * time.Millisecond // for the bus, while rules may be missing
)

// rules is what the kernel has, as far as this process knows: it is the only one who publishes.
type rules struct {
	read        bool // whether the kernel was read and set right, so that only others can have changed it since
	networks    []firewall.Network
	shown       map[uint64]firewall.Shown // by generation
	unexplained []string
	forbidding  []string
	moved       time.Time // when hooks were moved before the rules of others
}

// foreign takes note of a change of the firewall.
func (s *Service) foreign(pid int) {
	if s.kernel.Own(pid) {
		return
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// follow makes the kernel follow the records until ctx ends: it looks at the kernel at start, after changes by others and
// in a sweep, and removes what the records no longer want when they have come to rest. It calls followed after the first
// look.
func (s *Service) follow(ctx context.Context, followed func()) error {
	heads, networks := s.heads.Changed(), s.networks.Changed()
	f := &follower{s: s, looks: time.NewTimer(sweep), tidies: time.NewTimer(quiet)}
	defer f.looks.Stop()
	defer f.tidies.Stop()
	f.look(ctx, "start")
	followed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-heads: // taken anew before anything is read, so that no change is missed
			heads = s.heads.Changed()
			f.unrest()
		case <-networks:
			networks = s.networks.Changed()
			f.unrest()
		case <-f.tidies.C:
			f.tidy(ctx)
		case <-s.changed:
			begin := time.Now()
			f.look(ctx, "foreign")
			rest := max(breather, share*time.Since(begin))
			if f.failures > 0 { // it has a pause of its own, and may have waited for a bus that is away
				rest = breather
			}
			pause(ctx, rest)
		case <-f.looks.C:
			f.look(ctx, "sweep")
		}
	}
}

// follower is when to look at the kernel, and when to tidy up.
type follower struct {
	s        *Service
	looks    *time.Timer
	due      time.Time // for the next look, unless others change something before
	failures int       // looks in a row
	tidies   *time.Timer
	since    time.Time // when the records lost their rest; zero while they have it
}

// look looks at the kernel, and sees to it that the next look comes in time.
func (f *follower) look(ctx context.Context, cause string) {
	err := f.s.look(ctx, cause)
	if err != nil && ctx.Err() == nil {
		f.s.log.Error("kernel did not follow the records", "cause", cause, "err", err)
	}
	f.looked(cause, err, time.Now())
	f.looks.Reset(time.Until(f.due))
}

// looked decides when to look again. What others change puts no sweep off, however often they do.
func (f *follower) looked(cause string, err error, now time.Time) {
	if err != nil {
		f.failures++
		f.due = now.Add(min(retry<<min(f.failures-1, 10), retryMax))
		return
	}
	f.failures = 0
	if cause != "foreign" {
		f.due = now.Add(sweep)
	}
}

// unrest puts tidying off until the records have rested, but not for ever.
func (f *follower) unrest() {
	if f.since.IsZero() {
		f.since = time.Now()
	}
	f.tidies.Reset(min(quiet, max(0, unquiet-time.Since(f.since))))
}

// tidy tidies up, unless a switch waits.
func (f *follower) tidy(ctx context.Context) {
	if f.s.waiting.Load() > 0 && time.Since(f.since) < unquiet {
		f.unrest()
		return
	}
	f.since = time.Time{}
	if err := f.s.tidy(ctx); err != nil && ctx.Err() == nil {
		f.s.log.Warn("old rules were not removed", "err", err)
		f.look(ctx, "tidy")
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// look compares the kernel with the records and sets it right.
func (s *Service) look(ctx context.Context, cause string) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	err := s.restore(ctx, cause)
	return errors.Join(err, s.prepare(), s.forbidden())
}

// restore is the part of look that is about rules. The caller has the turn.
func (s *Service) restore(ctx context.Context, cause string) error {
	s.rules.read = false
	have, err := s.kernel.Read(ctx) // before the records: what they do not explain then is nobody's
	if err != nil {
		return err
	}
	if err := s.caughtUp(ctx); err != nil {
		return errors.Join(err, s.recall(ctx))
	}
	heads := s.heads.All()
	want, bad := wanted(s.host, heads, s.networks.All())
	if bad != nil {
		s.log.Error("records made no sense", "err", bad)
	}
	if want.Empty() && !have.Ours() {
		s.rules.read, s.rules.networks, s.rules.shown = true, nil, map[uint64]firewall.Shown{}
		return nil
	}
	if err := s.kernel.Prepare(); err != nil {
		return err
	}
	plan := firewall.NewPlan(want, have)
	if err := s.install(ctx, plan, cause); err != nil {
		return err
	}
	s.rules.read, s.rules.networks, s.rules.shown = true, want.Networks, known(want, have)
	s.report(plan.Unexplained)
	tidied := s.kernel.Tidy(ctx, plan)
	var flushed error
	for _, pub := range plan.Switched { // at last: what another backend has of a port may lead until it is removed
		flushed = errors.Join(flushed, s.flush(pub))
	}
	if err := errors.Join(tidied, flushed); err != nil {
		return err
	}
	return forget(unheld(heads, plan.Ended))
}

// caughtUp waits until the views hold what the records say now. It fails without a bus.
func (s *Service) caughtUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busPatience)
	defer cancel()
	return errors.Join(s.heads.CaughtUp(ctx), s.networks.CaughtUp(ctx))
}

// recall brings back, without the records, what this process knows to have been there, and removes nothing: a firewall
// that is flushed while the bus is down should not end what runs.
func (s *Service) recall(ctx context.Context) error {
	want := firewall.Want{Networks: s.rules.networks, Gone: func(string, uint64) bool { return false }}
	for _, pub := range s.rules.shown {
		if pub.Redirected {
			want.Live = append(want.Live, pub.Publication)
		} else {
			want.Draining = append(want.Draining, pub.Publication)
		}
	}
	if want.Empty() {
		return nil
	}
	have, err := s.kernel.Read(ctx) // anew: to wait for the bus took long
	if err != nil {
		return err
	}
	return s.install(ctx, firewall.NewPlan(want, have), "recall")
}

// install does what a plan says is missing. Hooks that stand behind somebody else's rules are moved at once, but not again
// before the next sweep: whoever else wants to be first should not find an opponent.
func (s *Service) install(ctx context.Context, plan firewall.Plan, cause string) error {
	hooks := plan.Missing
	if len(plan.Late) > 0 && (cause != "foreign" || time.Since(s.rules.moved) >= sweep) {
		hooks = append(hooks, plan.Late...)
		s.rules.moved = time.Now()
		s.log.Warn("rules of others stood before those that publish", "chains", builtin(plan.Late))
	}
	if !plan.Changes() && len(hooks) == 0 {
		return nil
	}
	if err := s.kernel.Install(ctx, plan); err != nil {
		return err
	}
	if err := s.kernel.Hook(hooks...); err != nil {
		return err
	}
	s.metrics.restores.WithLabelValues(cause).Inc()
	level := slog.LevelInfo
	if cause == "foreign" || cause == "sweep" || cause == "recall" {
		level = slog.LevelWarn // it was somebody who took them away
	}
	s.log.Log(ctx, level, "rules were restored", "cause", cause, "hooks", len(hooks), "switched", len(plan.Switched))
	return nil
}

// builtin names the chains of hooks.
func builtin(hooks []firewall.Hook) []string {
	var chains []string
	for _, h := range hooks {
		chains = append(chains, h.Table+" "+h.Chain)
	}
	return chains
}

// report tells, when it changes, which rules no record explains.
func (s *Service) report(unexplained []string) {
	s.metrics.unexplained.Set(float64(len(unexplained)))
	if len(unexplained) > 0 && !slices.Equal(unexplained, s.rules.unexplained) {
		s.log.Error("rules were left that no record explains", "deployments", unexplained)
	}
	s.rules.unexplained = unexplained
}

// forbidden tells, when it changes, which chains of others drop what is forwarded unless they know better: what one chain
// accepts, another can still drop.
func (s *Service) forbidden() error {
	chains, err := firewall.Forbidding()
	if err != nil || slices.Equal(chains, s.rules.forbidding) {
		return err
	}
	s.rules.forbidding = chains
	if len(chains) > 0 {
		s.log.Warn("another table may drop what is published", "chains", chains)
	}
	return nil
}

// known is what the kernel has once a plan is done.
func known(want firewall.Want, have firewall.Have) map[uint64]firewall.Shown {
	all := map[uint64]firewall.Shown{}
	add := func(pubs []firewall.Publication, redirected bool, there func(firewall.Publication) bool) {
		for _, pub := range pubs {
			if len(pub.Ports) > 0 && there(pub) {
				all[pub.Generation] = firewall.Shown{Publication: pub, Redirected: redirected}
			}
		}
	}
	always := func(firewall.Publication) bool { return true }
	add(want.Live, true, always)
	add(want.Draining, false, always)
	add(want.Leaving, false, have.Guards)
	return all
}

// tidy removes, in one batch, the redirects of what is no longer live and the guards of what is gone.
func (s *Service) tidy(ctx context.Context) error {
	if s.networksMoved() {
		return s.look(ctx, "network")
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.caughtUp(ctx); err != nil {
		return err
	}
	redirects, guards := obsolete(s.heads.All(), s.rules.shown)
	rest := maps.Clone(s.rules.shown)
	for _, pub := range redirects {
		rest[pub.Generation] = firewall.Shown{Publication: pub}
	}
	for _, pub := range guards {
		delete(rest, pub.Generation)
	}
	if err := s.kernel.Remove(ctx, redirects, guards, maps.Values(rest)); err != nil {
		return err
	}
	s.rules.shown = rest
	return nil
}

// networksMoved reports whether the host's networks are not those whose base rules stand.
func (s *Service) networksMoved() bool {
	want, _ := wanted(s.host, nil, s.networks.All()) // what makes no sense is told when the kernel is looked at
	s.turn.Lock()
	defer s.turn.Unlock()
	return !sameNetworks(want.Networks, s.rules.networks)
}

// obsolete gives the redirects of what is no longer live, and the guards of what is gone, of all that is shown.
func obsolete(heads map[string]*fulmarv1.Head, all map[uint64]firewall.Shown) (redirects, guards []firewall.Publication) {
	for generation, pub := range all {
		head := heads[pub.Stack]
		over := gone(head, generation)
		if pub.Redirected && (over || stateOf(head, generation) > fulmarv1.State_STATE_LIVE) {
			redirects = append(redirects, pub.Publication)
		}
		if over {
			guards = append(guards, pub.Publication)
		}
	}
	return redirects, guards
}
