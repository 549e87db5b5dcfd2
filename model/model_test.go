package model

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"fulmar/messages"
)

// schedules are how many run if nobody says otherwise.
const schedules = 10_000

// number is a number from the environment, or what it is without.
func number(t *testing.T, name string, without uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return without
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// violation runs a schedule.
func violation(seed uint64, without string) error { return newWorld(seed, without).run() }

// tell runs a schedule once more and gives its last steps.
func tell(seed uint64, without string) string {
	w := newWorld(seed, without)
	w.tracing = true
	err := w.run()
	if err == nil {
		return "and it does not happen again: the model is not deterministic"
	}
	return strings.Join(w.trace[max(0, len(w.trace)-80):], "\n")
}

// search runs schedules in parallel until one is violated, and gives its seed.
func search(from, count uint64, without string) (uint64, error) {
	var next, ended atomic.Uint64
	next.Store(from)
	var mu sync.Mutex
	var found error
	seed := uint64(0)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for ended.Load() == 0 {
				n := next.Add(1) - 1
				if n >= from+count {
					return
				}
				if err := violation(n, without); err != nil {
					ended.Store(1)
					mu.Lock()
					if found == nil || n < seed {
						found, seed = err, n
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return seed, found
}

func TestNoScheduleBreaksAnInvariant(t *testing.T) {
	if seed, err := search(number(t, "FULMAR_SEED", 0), number(t, "FULMAR_SCHEDULES", schedules), ""); err != nil {
		t.Fatalf("seed %d: %v\n%s", seed, err, tell(seed, ""))
	}
}

// TestSchedulesAreNotEmpty sees that the line is walked up and down in many ways: a model in which every request is
// rejected breaks nothing.
func TestSchedulesAreNotEmpty(t *testing.T) {
	const seeds = 300
	said := map[messages.Verb]int{}
	kept := 0
	for seed := range uint64(seeds) {
		w := newWorld(seed, "")
		if err := w.run(); err != nil {
			t.Fatal(err)
		}
		for _, e := range w.log {
			said[e.verb]++
			for _, u := range e.GetDeployment().GetUnits() {
				if e.verb == messages.Leased && u.GetKept() {
					kept++
				}
			}
		}
	}
	t.Logf("said %v, kept %d instances", said, kept)
	for verb, least := range map[messages.Verb]int{
		messages.Accepted: 2 * seeds, messages.Published: seeds / 2, messages.Staged: seeds / 10, messages.Failed: seeds / 2,
		messages.Rejected: seeds / 2, messages.Retired: seeds,
	} {
		if said[verb] < least {
			t.Errorf("%s was said %d times in %d schedules, want %d at least", verb, said[verb], seeds, least)
		}
	}
	if kept < seeds/10 {
		t.Errorf("%d instances were kept in %d schedules, want %d at least", kept, seeds, seeds/10)
	}
}

func TestEachRuleTakenOutIsCaught(t *testing.T) {
	for rule, says := range map[string]string{
		kernelFirst:   "the head changes before the kernel",
		byDigest:      "an instance is named by the generation that made it, and never again",
		adoptCond:     "nobody keeps an instance of what is condemned",
		noNATLock:     "one nat acts in a network namespace",
		noCondemn:     "a deployment is condemned before it is drained",
		noKernelCheck: "gc condemns only what the kernel leads nobody to",
		noRest:        "an address rests before it is claimed again",
		noChain:       "an event has one successor",
		sameAddress:   "a lease is explained only by the address that the head names",
		stillRuns:     "an address is claimed only when its last holder does not run",
		oneLine:       "what expired has failed before it is drained",
	} {
		t.Run(says, func(t *testing.T) {
			seed, err := search(0, 50_000, rule)
			if err == nil {
				t.Fatal("no schedule needs it")
			}
			if again := violation(seed, rule); again == nil || again.Error() != err.Error() {
				t.Errorf("seed %d gives %v, and then %v", seed, err, again)
			}
			t.Logf("seed %d: %v", seed, err)
		})
	}
}

func TestAScheduleIsItsSeed(t *testing.T) {
	for seed := range uint64(20) {
		var before []string
		for range 3 {
			w := newWorld(seed, "")
			w.tracing = true
			if err := w.run(); err != nil && !errors.Is(err, errConflict) {
				t.Fatal(err)
			}
			if before != nil && strings.Join(before, "\n") != strings.Join(w.trace, "\n") {
				t.Fatalf("seed %d is not the same each time", seed)
			}
			before = w.trace
		}
	}
}
