package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// patience bounds one run of an iptables program: others who change rules at the same time make it try again.
const patience = 10 * time.Second

// recent is how many of our own processes are remembered, to tell their changes from those of others.
const recent = 64

// Kernel changes and reads the firewall of the network namespace that the process is in.
type Kernel struct {
	iptables      *iptables.IPTables
	restore, save string // programs

	mu   sync.Mutex
	pids []int // of our own processes, the latest last
}

// NewKernel finds the programs of iptables.
func NewKernel() (*Kernel, error) {
	ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(int(patience/time.Second)))
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	k := &Kernel{iptables: ipt}
	if k.restore, err = exec.LookPath("iptables-restore"); err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	if k.save, err = exec.LookPath("iptables-save"); err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	return k, nil
}

// Restore runs an input for iptables-restore --noflush; each of its tables is one commit. An empty input is done at once.
func (k *Kernel) Restore(ctx context.Context, input string) error {
	if input == "" {
		return nil
	}
	if _, err := k.run(ctx, input, k.restore, "--noflush", "--wait", "10"); err != nil {
		return fmt.Errorf("change the rules: %w", err)
	}
	return nil
}

// Read reads what the kernel has.
func (k *Kernel) Read(ctx context.Context) (Ruleset, error) {
	out, err := k.run(ctx, "", k.save)
	if err != nil {
		return nil, fmt.Errorf("read the rules: %w", err)
	}
	return Parse(out)
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

// Own reports whether a process is one of those that this Kernel ran lately.
func (k *Kernel) Own(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, own := range k.pids {
		if own == pid {
			return true
		}
	}
	return false
}

func (k *Kernel) run(ctx context.Context, input, program string, args ...string) (*bytes.Buffer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
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

// oneLine makes what a program complained about fit an error.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

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
