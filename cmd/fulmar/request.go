package main

import (
	"fmt"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// change is what every command that asks for a deployment takes.
type change struct {
	Stack  string `arg:"" help:"Name of the stack."`
	Detach bool   `short:"d" help:"Print the deployment's name and do not follow it."`
	Wait   bool   `help:"Follow on until what was replaced is retired."`
}

type (
	promoteCmd  struct{ change }
	rollbackCmd struct{ change }
	renewCmd    struct{ change }
	discardCmd  struct{ change }
	retireCmd   struct{ change }
)

// Run publishes what is staged.
func (c *promoteCmd) Run(e *env) error {
	return c.request(e, fulmarv1.Kind_KIND_PROMOTE, func(newest *uint64) proto.Message { return &fulmarv1.PromoteRequest{IfNewest: newest} })
}

// Run publishes the previous content.
func (c *rollbackCmd) Run(e *env) error {
	return c.request(e, fulmarv1.Kind_KIND_ROLLBACK, func(newest *uint64) proto.Message { return &fulmarv1.RollbackRequest{IfNewest: newest} })
}

// Run replaces the instances.
func (c *renewCmd) Run(e *env) error {
	return c.request(e, fulmarv1.Kind_KIND_RENEW, func(newest *uint64) proto.Message { return &fulmarv1.RenewRequest{IfNewest: newest} })
}

// Run takes down what is staged.
func (c *discardCmd) Run(e *env) error {
	return c.request(e, fulmarv1.Kind_KIND_DISCARD, func(newest *uint64) proto.Message { return &fulmarv1.DiscardRequest{IfNewest: newest} })
}

// Run takes the stack out of service.
func (c *retireCmd) Run(e *env) error {
	return c.request(e, fulmarv1.Kind_KIND_RETIRE, func(newest *uint64) proto.Message { return &fulmarv1.RetireRequest{IfNewest: newest} })
}

// request connects, and sends what makes, which names the newest generation that this command saw.
func (c *change) request(e *env, kind fulmarv1.Kind, makes func(newest *uint64) proto.Message) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	head, err := e.head(b, c.Stack)
	if err != nil {
		return err
	}
	newest := head.GetNewest()
	return c.send(e, b, kind, makes(&newest))
}

// send stores a request and follows its deployment.
func (c *change) send(e *env, b *bus.Bus, kind fulmarv1.Kind, request proto.Message) error {
	body, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", messages.KindName(kind), c.Stack, err)
	}
	f := follower{env: e, bus: b, stack: c.Stack, wait: c.Wait, builds: make(chan *nats.Msg, logQueue)}
	if !c.Detach && !e.cli.JSON {
		sub, err := b.NC.ChanSubscribe(messages.BuildLogFilter(c.Stack), f.builds) // before anything can be built
		if err != nil {
			return fmt.Errorf("follow the builds of %s: %w", c.Stack, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	f.generation, err = b.Request(e.ctx, kind, c.Stack, body)
	if err != nil {
		return err
	}
	if c.Detach {
		return f.announce()
	}
	return f.follow()
}
