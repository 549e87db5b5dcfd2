package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Dropped returns an error if more than stray first packets of connections were sent again: then something dropped packets
// for a while, and no request failed just because the kernel sends a lost one again after a second.
func (r Result) Dropped() error {
	const stray = 200 // of so many one: the machine may stall
	if r.Resent*stray > r.Requests {
		return fmt.Errorf("for %d connections %d first packets were sent again: packets were dropped", r.Requests, r.Resent)
	}
	return nil
}

// resent is how many first packets of TCP connections the kernel has sent again from this namespace.
func (s *Space) resent() (n int, err error) {
	err = s.Do(func() error {
		n, err = counter("TcpExt:", "TCPSynRetrans")
		return err
	})
	return n, err
}

// counter reads one of the counters of the namespace that the calling thread is in: a line of names, and one of numbers.
func counter(group, name string) (int, error) {
	data, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group {
			continue
		}
		for i, other := range names {
			if other == name && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
		names = fields
	}
	return 0, fmt.Errorf("the kernel has no counter %s", name)
}
