package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/remote"
)

type albatrossPolicyCmd struct {
	Ls     albatrossPolicyLsCmd     `cmd:"" help:"List the policies of a path and below."`
	Add    albatrossPolicyAddCmd    `cmd:"" help:"Set the policy of a path."`
	Remove albatrossPolicyRemoveCmd `cmd:"" help:"Remove the policy of a path."`
}

type albatrossPolicyLsCmd struct {
	Path string `arg:"" optional:"" help:"Path (default: all)."`
}

// Run lists policies.
func (c *albatrossPolicyLsCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		path, err := d.pathOf(c.Path)
		if err != nil {
			return err
		}
		list, err := d.Policies(ctx, path)
		if err != nil {
			return err
		}
		return e.printPolicies(list)
	})
}

func (e *env) printPolicies(list []albatross.NamedPolicy) error {
	var rows []string
	for _, p := range list {
		if e.cli.JSON {
			if err := e.printWire(p); err != nil {
				return err
			}
			continue
		}
		block := "-"
		if p.Block != nil {
			block = fmt.Sprintf("%d MB", *p.Block)
		}
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d MB\t%s\t%s\t%s", p.Name, p.Unikernels, p.Memory, numbers(p.CPUIDs), block, orDash(strings.Join(p.Bridges, ","))))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("PATH UNIKERNELS MEMORY CPUS BLOCKS BRIDGES", rows)
}

// policyFlags are what a path may use.
type policyFlags struct {
	Path       string   `arg:"" help:"Path."`
	Unikernels int      `required:"" placeholder:"N" help:"Unikernels at most, below it too."`
	Memory     int      `short:"m" required:"" placeholder:"MB" help:"Memory of all of them."`
	CPU        []int    `name:"cpu" default:"0" placeholder:"ID" help:"CPUs that they may run on (default 0)."`
	Block      *int     `placeholder:"MB" help:"Size of their block devices together (default: none may be had)."`
	Bridge     []string `placeholder:"BRIDGE" help:"Bridges that they may be plugged into."`
}

func (f *policyFlags) policy() albatross.Policy {
	return albatross.Policy{CPUIDs: f.CPU, Unikernels: f.Unikernels, Memory: f.Memory, Block: f.Block, Bridges: f.Bridge}
}

type albatrossPolicyAddCmd struct{ policyFlags }

// Run sets the policy of a path. Afar it is set by a CA of five minutes for that path.
func (c *albatrossPolicyAddCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		path, err := d.pathOf(c.Path)
		if err != nil {
			return err
		}
		if d.endpoint == nil {
			err = d.AddPolicy(ctx, path, c.policy())
		} else {
			err = d.delegate(ctx, path, c.policy())
		}
		if err != nil {
			return err
		}
		return e.done("added policy of", path.Name())
	})
}

// delegate sets a policy by a certificate.
func (d *target) delegate(ctx context.Context, path albatross.Path, p albatross.Policy) error {
	parent, ok := path.Parent()
	if !ok || parent != d.path {
		return fmt.Errorf("the CA can set policies of paths with one label more than its own path %q; %q is none", d.path, path)
	}
	labels := path.Labels()
	ca, err := d.endpoint.CA.Delegate(labels[len(labels)-1], p, time.Now())
	if err != nil {
		return err
	}
	below := &remote.Endpoint{Address: d.endpoint.Address, Roots: d.endpoint.Roots, CA: ca}
	_, err = below.Client().Policies(ctx, path)
	if failure, ok := errors.AsType[*albatross.FailureError](err); ok { // not of the question, whose certificate has brought the policy
		_, reason, found := strings.Cut(failure.Message, "]: command failed ")
		if !found {
			reason = failure.Message
		}
		return &albatross.FailureError{Command: "add policy of", Name: path.Name(), Message: reason}
	}
	return err
}

type albatrossPolicyRemoveCmd struct {
	Path string `arg:"" help:"Path."`
}

// Run removes the policy of a path.
func (c *albatrossPolicyRemoveCmd) Run(e *env) error {
	return e.ask(func(ctx context.Context, d *target) error {
		if d.endpoint != nil {
			return errors.New("an endpoint removes no policies: do it on the machine of the daemon")
		}
		path, err := d.pathOf(c.Path)
		if err != nil {
			return err
		}
		if err := d.RemovePolicy(ctx, path); err != nil {
			return err
		}
		return e.done("removed policy of", path.Name())
	})
}
