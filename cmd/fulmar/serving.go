package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/micro"

	"fulmar/bus"
	"fulmar/messages"
)

const (
	servingPatience = 500 * time.Millisecond // for services that do not answer
	quietTime       = 3 * time.Second        // from a step to the word that the next one has not come
)

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

// sayWhoIsMissing notes who has not taken the last step of a deployment, if its service does not run. A builder that runs and
// has not even accepted the request is worth a word, too: nothing else bounds the wait for it.
func (f *follower) sayWhoIsMissing(last said) error {
	service, step := taker(last.subject.Verb)
	if service == "" {
		return nil
	}
	place, on := "", ""
	if service != "builder" && service != "ipam" {
		place = last.event.GetDeployment().GetNetwork().GetHost()
		on = " for host " + place
	}
	found, err := f.env.serving(f.bus, service, place)
	if err != nil {
		return err
	}
	switch {
	case !found[place]:
		fmt.Fprintf(f.env.err, "note: %s is not %s yet: no %s runs%s\n", f.name(), step, service, on)
	case step == messages.Accepted:
		fmt.Fprintf(f.env.err, "note: %s is not %s yet: a %s runs and has not taken it; its log may say why\n", f.name(), step, service)
	}
	return nil
}

// taker is the service that takes a step, and the step that it makes of it.
func taker(v messages.Verb) (service string, step messages.Verb) {
	switch v {
	case "":
		return "builder", messages.Accepted
	case messages.Accepted:
		return "builder", messages.Built
	case messages.Built:
		return "ipam", messages.Leased
	case messages.Leased:
		return "vmm", messages.Started
	case messages.Started:
		return "monitor", messages.Healthy
	case messages.Healthy:
		return "nat", messages.Published
	}
	return "", ""
}
