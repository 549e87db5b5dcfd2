package main

import (
	"fmt"
	"maps"
	"slices"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

type gcCmd struct {
	DryRun bool   `help:"Only say what a sweep would do."`
	Host   string `help:"Only this host (default: every host that reports, and the store of images)."`
}

// Run sweeps the hosts and the store of images. Who does not answer does not keep it from the others.
func (c *gcCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	places := []string{c.Host}
	if c.Host == "" {
		all, err := readable(e, b.Hosts)
		if err != nil {
			return err
		}
		places = append(slices.Sorted(maps.Keys(all)), messages.NoHost)
	}
	var rows []string
	var failed error
	for _, place := range places {
		items, err := b.Sweep(e.ctx, place, c.DryRun)
		if err != nil {
			fmt.Fprintln(e.err, "fulmar:", err)
			failed = saidError{err}
		}
		for _, i := range items {
			if e.cli.JSON {
				if err := e.printProto(i); err != nil {
					return err
				}
			}
			rows = append(rows, sweepRow(place, i))
		}
	}
	switch {
	case e.cli.JSON:
	case len(rows) > 0:
		err = e.table("HOST SUBJECT ACTION REASON", rows)
	case failed == nil:
		_, err = fmt.Fprintln(e.out, "nothing to sweep")
	}
	if err != nil {
		return err
	}
	return failed
}

func sweepRow(place string, i *fulmarv1.SweepItem) string {
	subject := i.GetSubject()
	if place == messages.NoHost { // the store is of no host, and an image has a long name
		place, subject = "-", short(subject)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s", place, subject, i.GetAction(), i.GetReason())
}
