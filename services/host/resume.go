package host

import (
	"context"
	"errors"
	"slices"
	"time"

	"fulmar/albatross"
)

const (
	firstPause = 100 * time.Millisecond // before a unikernel is started again
	lastPause  = 30 * time.Second       // as many failures in short order may lead to
	steadyTime = time.Minute            // a unikernel that ran so long has not failed in short order
)

// pause says how long to wait before the next start of what was started attempt times in short order, and which attempt that is.
func pause(attempt int, ran time.Duration) (next int, wait time.Duration) {
	if ran >= steadyTime {
		attempt = 0
	}
	wait = firstPause << min(attempt, 20)
	return attempt + 1, min(wait, lastPause)
}

// after decides what is started after an instance has ended: nothing, or the record with what changes in it. A unikernel that does not know the
// option --name says so by the status 64 and is started without.
func after(r record, ended exit) (next record, again bool) {
	if code, ok := ended.code(); ok && code == 64 && r.Args.AddName {
		r.Args.AddName = false
		return r, true
	}
	return r, r.Args.Fail.Restart && ended.restarts(slices.Clone(r.Args.Fail.ExitCodes))
}

// settled decides what becomes of a name whose instance has ended: if it is not to be started again it is forgotten. A command for the
// name that comes first has its way. It returns false if inst is to be started again.
func (s *Service) settled(inst *instance, again bool) bool {
	name := inst.record.Name
	e, unlock := s.lock(name)
	defer unlock()
	if inst.stopping.Load() || e.inst != inst {
		return true // a command has taken it in hand
	}
	if again {
		return false
	}
	if err := s.store.dropRecord(name); err != nil {
		s.log.Error("could not forget a unikernel", "unikernel", name.String(), "err", err)
	}
	s.forget(e)
	return true
}

// startLater starts next in the place of inst, which is done, and tries again with longer and longer pauses if that fails.
func (s *Service) startLater(ctx context.Context, inst *instance, next record, attempt int, wait time.Duration) {
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if s.startAgain(inst, next, attempt) {
			return
		}
		attempt, wait = pause(attempt, 0)
	}
}

// startAgain starts next in the place of inst unless a command has changed that meanwhile. It returns false if it should be tried again.
func (s *Service) startAgain(inst *instance, next record, attempt int) (settled bool) {
	e, unlock := s.lock(next.Name)
	defer unlock()
	if e.inst != inst {
		return true
	}
	defer s.rebook(next.Name, e)
	s.markDue(next.Name, attempt)
	image, err := s.loadBack(next)
	if errors.Is(err, errDamaged) { // another try is of no use
		s.log.Error("could not start a unikernel again, forgot it", "unikernel", next.Name.String(),
			"err", errors.Join(err, s.store.dropRecord(next.Name)))
		s.forget(e)
		return true
	}
	if err == nil {
		err = s.admit(next, image)
	}
	if err == nil {
		err = s.start(e, next, image, attempt)
	}
	if err != nil {
		s.markDue(next.Name, attempt)
		s.log.Error("could not start a unikernel again", "unikernel", next.Name.String(), "attempt", attempt, "err", err)
		return false
	}
	s.metrics.restarts.Inc()
	return true
}

// markDue writes down that a unikernel is to be started again, should host die before it is.
func (s *Service) markDue(name albatross.Name, attempt int) {
	if err := s.store.saveHandle(name, handle{Boot: s.boot, Attempt: attempt}); err != nil {
		s.log.Error("could not write down a restart", "unikernel", name.String(), "err", err)
	}
}
