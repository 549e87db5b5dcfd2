package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/micro"

	"fulmar/bus"
)

// servingPatience bounds how long services are waited for that do not answer.
const servingPatience = 500 * time.Millisecond

// serving gives the hosts for which a service answers on the bus; "" stands for a service that is for all. It waits until
// those of the hosts that are asked for have answered, and for others not at all.
func (e *env) serving(b *bus.Bus, service string, hosts ...string) (map[string]bool, error) {
	found := map[string]bool{}
	if len(hosts) == 0 {
		return found, nil
	}
	subject, err := micro.ControlSubject(micro.PingVerb, "fulmar-"+service, "")
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", service, err)
	}
	inbox := b.NC.NewInbox()
	sub, err := b.NC.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", service, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.NC.PublishRequest(subject, inbox, nil); err != nil {
		return nil, fmt.Errorf("ask for %s: %w", service, err)
	}
	late := time.Now().Add(servingPatience)
	for slices.ContainsFunc(hosts, func(host string) bool { return !found[host] }) {
		msg, err := sub.NextMsg(time.Until(late))
		if err != nil { // nobody answers at all, or nobody else
			return found, e.ctx.Err()
		}
		ping := micro.Ping{}
		if json.Unmarshal(msg.Data, &ping) == nil {
			found[ping.Metadata["host"]] = true
		}
	}
	return found, nil
}
