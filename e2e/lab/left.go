package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// poll is the time between two looks at what gives no event.
const poll = 20 * time.Millisecond

// Until calls f until it is nil, and gives its last error from before ctx ended when that comes first.
func Until(ctx context.Context, f func() error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// Clean waits until nothing of unikernels is there on the host, and says what is there still when ctx ends.
func (l *Lab) Clean(ctx context.Context) error {
	return Until(ctx, func() error {
		left, err := l.Left()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left behind: %q", left)
		}
		return err
	})
}

var generation = regexp.MustCompile(`FULMAR-[0-9]+`)

// Left says what of unikernels is there on the host: taps, control groups, processes in them, and rules of a
// generation or elements in tables of Fulmar's own, sorted. With nothing deployed there is none.
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
	groups, err := l.groups()
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		left = append(left, "control group "+g)
	}
	pids, err := l.Unikernels()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	rules, err := Rules()
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if generation.MatchString(r) {
			left = append(left, "rule "+r)
		}
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyBridge} {
		own, err := elements(family)
		if err != nil {
			return nil, err
		}
		left = append(left, own...)
	}
	slices.Sort(left)
	return left, nil
}

// cgroupMounts are where control groups may be mounted: unified, or one for each controller.
func cgroupMounts() []string {
	const root = "/sys/fs/cgroup"
	return []string{root, root + "/memory", root + "/pids", root + "/cpuset", root + "/unified"}
}

// groups lists the control groups of unikernels.
func (l *Lab) groups() ([]string, error) {
	var all []string
	for _, mount := range cgroupMounts() {
		dir := filepath.Join(mount, l.Cgroup)
		groups, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list the control groups: %w", err)
		}
		for _, g := range groups {
			if g.IsDir() {
				all = append(all, filepath.Join(dir, g.Name()))
			}
		}
	}
	return all, nil
}

// Unikernels lists the processes in the control groups of unikernels.
func (l *Lab) Unikernels() ([]int, error) {
	groups, err := l.groups()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, g := range groups {
		text, err := os.ReadFile(filepath.Join(g, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("list the processes of %s: %w", g, err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("list the processes of %s: %w", g, err)
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// KillUnikernels kills every unikernel, as a failure of the machine does.
func (l *Lab) KillUnikernels() error {
	pids, err := l.Unikernels()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill unikernel %d: %w", pid, err)
		}
	}
	return nil
}

// endUnikernels kills what still runs and removes its control groups and their parents.
func (l *Lab) endUnikernels() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTime)
	defer cancel()
	if err := l.KillUnikernels(); err != nil {
		return err
	}
	return Until(ctx, func() error {
		groups, err := l.groups()
		for _, mount := range cgroupMounts() {
			groups = append(groups, filepath.Join(mount, l.Cgroup))
		}
		errs := []error{err}
		for _, g := range groups {
			if err := os.Remove(g); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// Reset leaves nothing that a machine forgets when its power fails: unikernels and their control groups, bridges, rules
// and connections. Everything but files.
func (l *Lab) Reset() error {
	return errors.Join(l.endUnikernels(), cleanHost())
}

// cleanTime is for what was killed to be gone.
const cleanTime = 10 * time.Second

// cleanHost removes bridges, rules and connections from the host.
func cleanHost() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	errs := []error{FlushRules(), netlink.ConntrackTableFlush(netlink.ConntrackTable)}
	for _, link := range links {
		if link.Type() == "bridge" {
			errs = append(errs, netlink.LinkDel(link))
		}
	}
	return errors.Join(errs...)
}
