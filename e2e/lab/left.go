package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

var generation = regexp.MustCompile(`FULMAR-[0-9]+`)

// Clean waits until nothing of unikernels is there on the host, and says what is there still when ctx ends.
func (l *Lab) Clean(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := l.Left()
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("left behind: %q", left)
		case <-tick.C:
		}
	}
}

// Left says what of unikernels is there on the host: taps, control groups and chains of a generation. With nothing
// deployed there is none.
func (l *Lab) Left() ([]string, error) {
	var left []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	for _, link := range links {
		if link.Type() == "tuntap" {
			left = append(left, "tap "+link.Attrs().Name)
		}
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/unified"} {
		groups, err := os.ReadDir(filepath.Join(dir, l.Cgroup))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list the control groups: %w", err)
		}
		for _, g := range groups {
			if g.IsDir() {
				left = append(left, "control group "+filepath.Join(dir, l.Cgroup, g.Name()))
			}
		}
	}
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		return nil, fmt.Errorf("list the rules: %w", err)
	}
	for line := range strings.SplitSeq(string(rules), "\n") {
		if generation.MatchString(line) {
			left = append(left, "rule "+line)
		}
	}
	return left, nil
}
