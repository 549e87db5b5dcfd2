package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// StateDir is where the host keeps what must stay through a boot, as [Lab.Up] has it.
func (l *Lab) StateDir() string { return filepath.Join(l.Dir, "data", "host") }

// Remains says what is left of deployments everywhere, sorted: what [Lab.Left] says, processes that are in no control
// group any more, files of the host, leases that are held, deployments in heads, and instances in the hosts' records.
// With all stacks retired there is none.
func (l *Lab) Remains(ctx context.Context, b *bus.Bus) ([]string, error) {
	var all []string
	for _, list := range []func() ([]string, error){
		l.Left, l.processes, l.files,
		func() ([]string, error) { return heldLeases(ctx, b) },
		func() ([]string, error) { return deployments(ctx, b) },
		func() ([]string, error) { return recorded(ctx, b) },
	} {
		found, err := list()
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	slices.Sort(all)
	return all, nil
}

// processes lists those whose standard output is a FIFO of the host.
func (l *Lab) processes() ([]string, error) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var all []string
	for _, link := range links {
		to, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(to, filepath.Join(l.RunDir(), "fifo")+"/") { // else it has ended
			all = append(all, "process "+strings.Split(link, "/")[2]+" with console "+to)
		}
	}
	return all, nil
}

// files lists what the host keeps of unikernels.
func (l *Lab) files() ([]string, error) {
	var all []string
	for _, dir := range []string{
		filepath.Join(l.RunDir(), "fifo"), filepath.Join(l.StateDir(), "unikernels"), filepath.Join(l.StateDir(), "processes"),
		filepath.Join(l.StateDir(), "images"), filepath.Join(l.StateDir(), "tmp"),
	} {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list the files of the host: %w", err)
		}
		for _, f := range files {
			all = append(all, "file "+filepath.Join(dir, f.Name()))
		}
	}
	return all, nil
}

func heldLeases(ctx context.Context, b *bus.Bus) ([]string, error) {
	leases, err := b.Leases.All(ctx)
	if err != nil {
		return nil, err
	}
	var held []string
	for key, l := range leases {
		if l.GetRestingUntil() == nil {
			held = append(held, "lease "+key+" of "+l.GetInstance())
		}
	}
	return held, nil
}

// deployments lists those that are not retired, but for a live one of no units, which is what retiring a stack leaves.
func deployments(ctx context.Context, b *bus.Bus) ([]string, error) {
	heads, err := b.Heads.All(ctx)
	if err != nil {
		return nil, err
	}
	var there []string
	for stack, h := range heads {
		for _, d := range h.GetDeployments() {
			if d.GetState() != fulmarv1.State_STATE_LIVE || len(d.GetContent().GetUnits()) > 0 {
				there = append(there, "deployment "+messages.DeploymentName(stack, d.GetGeneration())+" in "+d.GetState().String())
			}
		}
	}
	return there, nil
}

func recorded(ctx context.Context, b *bus.Bus) ([]string, error) {
	hosts, err := b.Hosts.All(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	for name, h := range hosts {
		for _, i := range h.GetInstances() {
			all = append(all, "record of "+i.GetName()+" on host "+name)
		}
	}
	return all, nil
}
