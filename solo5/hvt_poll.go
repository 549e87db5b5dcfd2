package solo5

import (
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// A waitSet waits for packets of all network devices.
type waitSet struct {
	taps    []unix.PollFd
	handles []int // of the taps
	start   time.Time
	timeout unix.Timespec // here, as nothing may be allocated in a wait
}

func newWaitSet(devices []attachment) waitSet {
	w := waitSet{start: time.Now()}
	for handle, a := range devices {
		if a.Device == NetDevice {
			w.taps = append(w.taps, unix.PollFd{Fd: int32(a.FD), Events: unix.POLLIN})
			w.handles = append(w.handles, handle)
		}
	}
	return w
}

// wait returns the set of the handles that have packets, and how many these
// are: none if there is none for so many nanoseconds. A tap that is broken
// counts as one with packets, since a read says what it has.
func (w *waitSet) wait(nsecs uint64) (ready uint64, n int, err error) {
	begin := time.Since(w.start)
	for left := nsecs; ; left = remaining(nsecs, time.Since(w.start)-begin) {
		w.timeout = timespec(left)
		n, err = unix.Ppoll(w.taps, &w.timeout, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, 0, err
	}
	for i, tap := range w.taps {
		if tap.Revents != 0 {
			ready |= 1 << w.handles[i]
		}
	}
	return ready, n, nil
}

// remaining returns what is left of so many nanoseconds.
func remaining(nsecs uint64, passed time.Duration) uint64 {
	if uint64(passed) >= nsecs {
		return 0
	}
	return nsecs - uint64(passed)
}

// timespec returns nanoseconds as the kernel wants them; centuries are the same
// to it as for ever.
func timespec(nsecs uint64) unix.Timespec {
	return unix.NsecToTimespec(int64(min(nsecs, math.MaxInt64)))
}
