package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// head gives the head of a stack that must be there.
func (e *env) head(b *bus.Bus, stack string) (*fulmarv1.Head, error) {
	if err := messages.CheckName("stack", stack); err != nil {
		return nil, err
	}
	head, rev, err := b.Heads.Get(e.ctx, stack)
	if err == nil && rev == 0 {
		err = fmt.Errorf("there is no stack %q; fulmar ps -a lists them", stack)
	}
	return head, err
}

// printHead prints a head as JSON, in its field instances what their hosts said of those of the stack last, and in its field
// health how those are that are live or staged.
func (e *env) printHead(head *fulmarv1.Head, running map[string]*fulmarv1.HostInstance, healths map[string]health) error {
	body, err := protojson.Marshal(head)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &fields); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	seen := []json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(running)) {
		if stack, _, _, ok := messages.ParseInstance(name); !ok || stack != head.GetStack() {
			continue
		}
		instance, err := protojson.Marshal(running[name])
		if err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		seen = append(seen, instance)
	}
	if fields["instances"], err = json.Marshal(seen); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	watched := []health{}
	for _, name := range slices.Sorted(maps.Keys(healths)) {
		if stack, _, _, ok := messages.ParseInstance(name); ok && stack == head.GetStack() {
			watched = append(watched, healths[name])
		}
	}
	if fields["health"], err = json.Marshal(watched); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return e.printJSON(fields)
}
