package builder

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/policy"
)

// Surroundings are what a decision about a request may look at.
type Surroundings struct {
	Networks map[string]*fulmarv1.Network // by name
	Hosts    map[string]*fulmarv1.Host    // by name
	// Holding gives at least the heads that hold one of the ports of a content.
	Holding func(*fulmarv1.Content) []*fulmarv1.Head
	Now     time.Time
	Fetch   time.Duration // allowed for what comes from elsewhere
	Policy  *policy.Policy
}

// Enter decides about a request: it gives the deployment to enter into the head, or a refusal. A request that the head
// holds already is given as it was entered; one that has been through is [messages.ErrGone].
func Enter(h *fulmarv1.Head, r bus.Request, w Surroundings) (*fulmarv1.HeadDeployment, error) {
	if d := messages.Find(h, r.Generation); d != nil {
		return d, nil
	}
	if r.Generation <= h.GetNewest() {
		return nil, messages.ErrGone
	}
	m, err := messages.DecodeRequest(r.Kind, r.Body)
	if err != nil {
		return nil, err
	}
	if want, ok := messages.IfNewest(m); ok && want != h.GetNewest() {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "the request means stack %s at generation %d, but its newest is %d", r.Stack, want, h.GetNewest())
	}
	d, err := content(h, r, m, w)
	if err != nil {
		return nil, err
	}
	network, ok := w.Networks[d.GetContent().GetNetwork()]
	if last := newest(h); !ok && len(d.GetContent().GetUnits()) == 0 && last != nil { // nothing keeps a stack from going
		network, ok = &fulmarv1.Network{Name: d.GetContent().GetNetwork(), Host: last.GetHost()}, true
	}
	if !ok {
		return nil, missing(r.Kind, d.GetContent().GetNetwork())
	}
	if w.Hosts[network.GetHost()] == nil && len(d.GetContent().GetUnits()) > 0 {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "network %s is on host %s, which has never reported what it runs: does vmm run there?", network.GetName(), network.GetHost())
	}
	if starts(r.Kind) {
		if err := room(d.GetContent(), w.Hosts[network.GetHost()]); err != nil {
			return nil, err
		}
	}
	d.Generation, d.Host = r.Generation, network.GetHost()
	return d, place(h, r.Stack, d, w)
}

// starts reports whether what a kind of request deploys has still to be started. Else it runs, and needs no room of a host
// that has less by now.
func starts(k fulmarv1.Kind) bool {
	return k != fulmarv1.Kind_KIND_PROMOTE && k != fulmarv1.Kind_KIND_DISCARD
}

// missing refuses a network that does not exist, which a content that was deployed once may name.
func missing(k fulmarv1.Kind, network string) error {
	if k == fulmarv1.Kind_KIND_DEPLOY {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "network %q does not exist: fulmar network ls lists them", network)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND,
		"the content of this %s is on network %q, which does not exist any more: add it again with fulmar network add, or deploy to another", messages.KindName(k), network)
}

// place refuses a deployment on another host than what is there, and one whose ports another stack holds.
func place(h *fulmarv1.Head, stack string, d *fulmarv1.HeadDeployment, w Surroundings) error {
	for _, other := range h.GetDeployments() {
		if len(other.GetContent().GetUnits()) > 0 && other.GetState() != fulmarv1.State_STATE_CONDEMNED && other.GetHost() != d.GetHost() {
			return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_CONFLICT, "network %s is on host %s, but stack %s is on host %s: retire it first",
				d.GetContent().GetNetwork(), d.GetHost(), stack, other.GetHost())
		}
	}
	return messages.CheckPorts(w.Holding(d.GetContent()), stack, d.GetHost(), d.GetContent())
}

// content gives what a request deploys: only this differs from one kind of request to another.
func content(h *fulmarv1.Head, r bus.Request, m proto.Message, w Surroundings) (*fulmarv1.HeadDeployment, error) {
	d := &fulmarv1.HeadDeployment{Deadline: timestamppb.New(w.Now.Add(messages.DefaultDeadline))}
	live := messages.InState(h, fulmarv1.State_STATE_LIVE)
	staged := messages.InState(h, fulmarv1.State_STATE_STAGED)
	nothing := func(what string) error {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "stack %s has nothing %s", r.Stack, what)
	}
	switch r.Kind {
	case fulmarv1.Kind_KIND_DEPLOY:
		return deploy(h, r, m.(*fulmarv1.DeployRequest), w)
	case fulmarv1.Kind_KIND_PROMOTE:
		if staged == nil {
			return nil, nothing("staged to promote")
		}
		d.Content = staged.GetContent()
	case fulmarv1.Kind_KIND_ROLLBACK:
		if h.GetPrevious() == nil {
			return nil, nothing("to roll back to: nothing was replaced yet")
		}
		d.Content = h.GetPrevious()
	case fulmarv1.Kind_KIND_RETIRE:
		return d, retire(h, d, nothing)
	case fulmarv1.Kind_KIND_RENEW:
		if len(live.GetContent().GetUnits()) == 0 {
			return nil, nothing("live to renew")
		}
		d.Content = live.GetContent()
	case fulmarv1.Kind_KIND_DISCARD:
		if staged == nil {
			return nil, nothing("staged to discard")
		}
		d.Content = &fulmarv1.Content{Network: staged.GetContent().GetNetwork(), Drain: staged.GetContent().GetDrain()}
		if live != nil {
			d.Content = live.GetContent()
		}
	}
	d.Content = proto.CloneOf(d.GetContent())
	return d, nil
}

// deploy gives new content.
func deploy(h *fulmarv1.Head, r bus.Request, m *fulmarv1.DeployRequest, w Surroundings) (*fulmarv1.HeadDeployment, error) {
	n, err := messages.Normalize(r.Stack, m)
	if err != nil {
		return nil, err
	}
	if n.GetNetwork() == "" {
		if n.Network, err = network(h, w); err != nil {
			return nil, err
		}
	}
	limit := n.GetDeadline().AsDuration()
	for _, u := range n.GetUnits() {
		if err := w.Policy.Allow(u.GetImage()); err != nil {
			return nil, fmt.Errorf("unit %s: %w", u.GetName(), err)
		}
		limit += allowance(u.GetImage(), w.Fetch)
	}
	return &fulmarv1.HeadDeployment{
		Deadline: timestamppb.New(w.Now.Add(limit)), Staged: n.GetStaged(),
		Content: &fulmarv1.Content{Units: n.GetUnits(), Network: n.GetNetwork(), Drain: n.GetDrain()},
	}, nil
}

// allowance is the time for getting an image, which the deadline of a deployment gets on top: images are got one after
// another. A build has a limit of its own, and its repository and its base image come from elsewhere.
func allowance(i *fulmarv1.Image, fetch time.Duration) time.Duration {
	switch i.GetSource().(type) {
	case *fulmarv1.Image_Url, *fulmarv1.Image_Docker, *fulmarv1.Image_Oci:
		return fetch
	case *fulmarv1.Image_Git:
		return fetch + i.GetGit().GetLimit().AsDuration()
	}
	return 0
}

// network gives the network of a request that names none: that of the stack, or the only one.
func network(h *fulmarv1.Head, w Surroundings) (string, error) {
	if d := newest(h); d != nil {
		return d.GetContent().GetNetwork(), nil
	}
	var names []string
	for name := range w.Networks {
		names = append(names, name)
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "there is no network: add one with fulmar network add")
	case 1:
		return names[0], nil
	}
	return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "the request names no network and there are several: choose one of %s with --network, or the field network", strings.Join(names, ", "))
}

// retire gives the content of no units. Whatever of the stack is there or on its way, down to an empty live content, is
// replaced by it.
func retire(h *fulmarv1.Head, d *fulmarv1.HeadDeployment, nothing func(string) error) error {
	last := newest(h)
	for _, other := range h.GetDeployments() {
		if len(other.GetContent().GetUnits()) > 0 && other.GetState() <= fulmarv1.State_STATE_LIVE {
			d.Content = &fulmarv1.Content{Network: last.GetContent().GetNetwork(), Drain: last.GetContent().GetDrain()}
			return nil
		}
	}
	return nothing("to retire")
}

// newest gives the newest deployment of a head, or nil.
func newest(h *fulmarv1.Head) *fulmarv1.HeadDeployment {
	if n := len(h.GetDeployments()); n > 0 {
		return h.GetDeployments()[n-1]
	}
	return nil
}
