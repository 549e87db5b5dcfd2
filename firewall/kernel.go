package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// recent is how many of our own processes are remembered, to tell their changes from those of others.
const recent = 64

// Kernel changes and reads the firewall of the network namespace that the process is in. It may be used by several
// goroutines at once; their changes are made one after another.
type Kernel struct {
	backend       Backend
	iptables      *iptables.IPTables
	restore, save string        // programs
	probe         time.Duration // for the first answer of a restorer

	turn     sync.Mutex // held during a change
	restorer *restorer  // nil until it is needed, and after a failure
	mute     bool       // whether each change needs a run of its own
	table    *ownTable

	mu   sync.Mutex
	pids []int // of our own processes, the latest last
}

// NewKernel finds the programs of iptables.
func NewKernel(backend Backend) (*Kernel, error) {
	if backend != IPTables && backend != NFTables {
		return nil, fmt.Errorf("firewall backend %q: it is %s or %s", backend, IPTables, NFTables)
	}
	ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(int(patience/time.Second)))
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	k := &Kernel{backend: backend, iptables: ipt, probe: probe, table: newOwnTable()}
	if k.restore, err = exec.LookPath("iptables-restore"); err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	if k.save, err = exec.LookPath("iptables-save"); err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	return k, nil
}

// Publish leads clients to p, of which the kernel has nothing, by one commit a table; all else that it has is shown. After
// an error some of it may have been committed.
func (k *Kernel) Publish(ctx context.Context, p Publication, all iter.Seq[Shown]) error {
	if k.backend == IPTables {
		return k.commit(ctx, Publish(p), change{})
	}
	return k.commit(ctx, "", publish(p, all))
}

// Remove removes the redirects of generations that were replaced and the guards of generations whose instances have
// ended. The rest is what is still shown.
func (k *Kernel) Remove(ctx context.Context, redirects, guards []Publication, rest iter.Seq[Shown]) error {
	if k.backend == IPTables {
		return k.commit(ctx, Remove(redirects, guards), change{})
	}
	return k.commit(ctx, "", withdraw(redirects, guards, rest))
}

// Install adds what a plan says is missing and sets right what is wrong, but for its hooks.
func (k *Kernel) Install(ctx context.Context, p Plan) error { return k.commit(ctx, p.Install, p.table) }

// Tidy removes what a plan says is no longer wanted.
func (k *Kernel) Tidy(ctx context.Context, p Plan) error { return k.commit(ctx, p.Remove, p.tidied) }

// commit runs an input for iptables-restore --noflush, of which each table is one commit, and makes a change of our own table.
func (k *Kernel) commit(ctx context.Context, input string, c change) error {
	if input == "" && c.empty() {
		return nil
	}
	k.turn.Lock()
	defer k.turn.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	if input != "" {
		err = k.change(ctx, input)
	}
	if err == nil {
		err = k.table.commit(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("change the rules: %w", err)
	}
	return nil
}

func (k *Kernel) change(ctx context.Context, input string) error {
	if err := k.start(); err != nil {
		return err
	}
	if k.mute {
		_, err := k.run(ctx, input, k.restore, "--noflush", "--wait", seconds(patience))
		return err
	}
	err := k.restorer.restore(ctx, input)
	if err != nil {
		k.restorer.stop()
		k.restorer = nil
	}
	return err
}

// Prepare makes ready for changes, so that the first of them does not wait for a process to start.
func (k *Kernel) Prepare() error {
	k.turn.Lock()
	defer k.turn.Unlock()
	ready := k.start
	if k.backend == NFTables {
		ready = k.table.open
	}
	if err := ready(); err != nil {
		return fmt.Errorf("prepare to change the rules: %w", err)
	}
	return nil
}

// start makes a restorer wait for input, if there is none and this iptables can.
func (k *Kernel) start() error {
	if k.restorer != nil || k.mute {
		return nil
	}
	r, err := startRestorer(k.restore, k.probe)
	if errors.Is(err, errMute) {
		k.mute = true
		return nil
	}
	if err != nil {
		return err
	}
	k.restorer = r
	k.remember(r.cmd.Process.Pid)
	return nil
}

// Close ends what waits for changes. The next change starts it anew.
func (k *Kernel) Close() {
	k.turn.Lock()
	defer k.turn.Unlock()
	if k.restorer != nil {
		k.restorer.stop()
		k.restorer = nil
	}
	k.table.close()
}

// Read reads what the kernel has.
func (k *Kernel) Read(ctx context.Context) (Have, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := k.run(ctx, "", k.save)
	if err != nil {
		return Have{}, fmt.Errorf("read the rules: %w", err)
	}
	rules, err := Parse(out)
	if err != nil {
		return Have{}, err
	}
	k.turn.Lock()
	defer k.turn.Unlock()
	own, err := k.table.read(ctx)
	if err != nil {
		return Have{}, fmt.Errorf("read the rules: %w", err)
	}
	return Have{k.backend, rules, own}, nil
}

// Hook puts the hooks first in their chains, wherever they were. A hook that is moved is there twice for a moment, which
// does no harm, and never missing.
func (k *Kernel) Hook(hooks ...Hook) error {
	for _, h := range hooks {
		rule := strings.Fields(h.Rule)
		there, err := k.iptables.Exists(h.Table, h.Chain, rule...)
		if err == nil {
			err = k.iptables.Insert(h.Table, h.Chain, 1, rule...)
		}
		if err != nil {
			return fmt.Errorf("hook chain %s of table %s: %w", h.Chain, h.Table, err)
		}
		if there {
			if err := k.deleteLast(h, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteLast deletes the later of two equal hooks: a delete by rule would take the first.
func (k *Kernel) deleteLast(h Hook, rule []string) error {
	rules, err := k.iptables.List(h.Table, h.Chain)
	if err != nil {
		return fmt.Errorf("hook chain %s of table %s: %w", h.Chain, h.Table, err)
	}
	want := "-A " + h.Chain + " " + strings.Join(rule, " ")
	position := 0
	for i, text := range rules {
		if text == want {
			position = i // the first line is the policy, so this is the rule's number
		}
	}
	if position > 1 {
		if err := k.iptables.DeleteById(h.Table, h.Chain, position); err != nil {
			return fmt.Errorf("hook chain %s of table %s: %w", h.Chain, h.Table, err)
		}
	}
	return nil
}

// Own reports whether a process is one of those that this Kernel ran lately, or this one, of which the kernel names the
// thread.
func (k *Kernel) Own(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Contains(k.pids, pid) {
		return true
	}
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(pid))
	return err == nil
}

func (k *Kernel) run(ctx context.Context, input, program string, args ...string) (*bytes.Buffer, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	k.remember(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(program), err, oneLine(stderr.String()))
	}
	return &stdout, nil
}

func (k *Kernel) remember(pid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pids = append(k.pids, pid)
	k.pids = k.pids[max(0, len(k.pids)-recent):]
}

// Tune gives the kernel's settings their values. A setting that has its value already is not written, so that a
// read-only /proc/sys that was prepared by somebody else is fine.
func Tune(settings map[string]string) error {
	var errs []error
	for path, value := range settings {
		path = "/proc/sys/" + path
		have, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(have)) == value {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(value), 0o644)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set sysctl %s to %s: %w", path, value, err))
		}
	}
	return errors.Join(errs...)
}
