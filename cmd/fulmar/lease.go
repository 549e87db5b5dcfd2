package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

type leaseCmd struct {
	Ls leaseLsCmd `cmd:"" help:"List the leases."`
}

type leaseLsCmd struct {
	All bool `short:"a" help:"Those too whose address has rested and is free."`
}

// Run lists the leases of addresses.
func (c *leaseLsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	all, err := readable(e, b.Leases)
	if err != nil {
		return err
	}
	var rows []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		network, address, _ := messages.ParseLeaseKey(key)
		l := all[key]
		state := leaseState(l, time.Now())
		if state == "free" && !c.All {
			continue
		}
		fields, until := map[string]string{"network": network, "address": address, "state": state, "instance": l.GetInstance()}, "-"
		if at := l.GetRestingUntil().AsTime(); state == "resting" {
			fields["until"], until = at.Format(time.RFC3339), at.Local().Format(time.DateTime)
		}
		if e.cli.JSON {
			if err := e.printJSON(fields); err != nil {
				return err
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s", network, address, state, l.GetInstance(), until))
	}
	if e.cli.JSON {
		return nil
	}
	return e.table("NETWORK ADDRESS STATE INSTANCE RESTS-UNTIL", rows)
}

// leaseState says whether an address is held by its instance, rests after it, or is free again.
func leaseState(l *fulmarv1.Lease, now time.Time) string {
	switch {
	case l.GetRestingUntil() == nil:
		return "held"
	case l.GetRestingUntil().AsTime().Before(now):
		return "free"
	}
	return "resting"
}
