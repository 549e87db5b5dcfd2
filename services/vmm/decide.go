package vmm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fulmar/albatross"
	"fulmar/albatross/remote"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// patience is how long a fault of the daemon's own is tried again before it fails the deployment: it may pass, and if it
// does not, its text says more than a deadline.
const patience = 5 * time.Second

// Start is one instance that should run.
type Start struct {
	Unit   string
	Name   string // of the instance
	Image  string // SHA-256, hexadecimal
	Kept   bool   // it runs already, unless it has exited
	Config albatross.Config
}

// Starts gives the instances of a leased deployment in lease order, with all of their configurations but the images.
// Cpus are for units that name none.
func Starts(d *fulmarv1.Deployment, cpus []int) ([]Start, error) {
	order, err := messages.ContentOrder(d.GetContent())
	if err != nil {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	starts := make([]Start, 0, len(order))
	for _, name := range order {
		unit, spec := unitOf(d, name), specOf(d.GetContent(), name)
		if !messages.IsDigest(unit.GetImage()) || unit.GetInstance().GetName() == "" {
			return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unit %s was leased without image or instance", name)
		}
		starts = append(starts, Start{
			Unit: name, Name: unit.GetInstance().GetName(), Image: unit.GetImage(), Kept: unit.GetKept(),
			Config: configOf(d.GetNetwork(), spec, unit, cpus),
		})
	}
	return starts, nil
}

func unitOf(d *fulmarv1.Deployment, name string) *fulmarv1.Unit {
	for _, u := range d.GetUnits() {
		if u.GetName() == name {
			return u
		}
	}
	return nil
}

func specOf(c *fulmarv1.Content, name string) *fulmarv1.UnitSpec {
	for _, u := range c.GetUnits() {
		if u.GetName() == name {
			return u
		}
	}
	return nil
}

func configOf(n *fulmarv1.Network, spec *fulmarv1.UnitSpec, unit *fulmarv1.Unit, cpus []int) albatross.Config {
	c := albatross.Config{Typ: albatross.Solo5, Args: albatross.Args{
		Memory: int(spec.GetMemory()), CPUs: 1, CPUIDs: cpus, Arguments: unit.GetArgs(), Fail: failOf(spec.GetRestart()),
	}}
	if len(spec.GetCpus()) > 0 {
		c.CPUIDs = nil
		for _, id := range spec.GetCpus() {
			c.CPUIDs = append(c.CPUIDs, int(id))
		}
	}
	if unit.GetDevice() != "" {
		c.Bridges = []albatross.Bridge{{Netif: unit.GetDevice(), Bridge: n.GetBridge()}}
	}
	return c
}

// failOf is what albatross is to do when a unit ends by itself.
func failOf(restart string) albatross.FailBehaviour {
	switch restart {
	case messages.RestartAlways:
		return albatross.FailBehaviour{Restart: true}
	case messages.RestartOnFailure:
		f := albatross.FailBehaviour{Restart: true}
		for code := range 256 {
			if messages.StartsAgain(restart, code) {
				f.ExitCodes = append(f.ExitCodes, code)
			}
		}
		return f
	}
	return albatross.FailBehaviour{}
}

// Differs names the first thing in which what runs is not what should, or gives nothing. What a daemon does not tell, as
// which CPUs it chose by itself, is not compared.
func (s Start) Differs(have albatross.Info) string {
	switch {
	case hex.EncodeToString(have.Digest) != s.Image:
		return fmt.Sprintf("its image is %x", have.Digest)
	case have.Memory != s.Config.Memory:
		return fmt.Sprintf("its memory is %d MB", have.Memory)
	case !slices.Equal(have.Arguments, s.Config.Arguments):
		return fmt.Sprintf("its arguments are %q", strings.Join(have.Arguments, " "))
	}
	return ""
}

// startedSince reports whether what runs was started after a time, as far as the daemon tells.
func startedSince(have albatross.Info, t time.Time) bool {
	return !have.Started.Before(t.Truncate(time.Millisecond)) // as exact as it is told
}

// Judge gives what the daemon's answer to a create means: a refusal if another try cannot cure it, else an error that is
// worth one. Leased is when the unit was leased.
func (s Start) Judge(err error, leased, now time.Time) error {
	var failure *albatross.FailureError
	switch {
	case !errors.As(err, &failure), failure.Message == remote.ErrNoDaemon.Error(): // the endpoint before the daemon was asked
		return fmt.Errorf("start %s: %w", s.Name, err)
	case passing(failure.Message) && now.Sub(leased) < patience:
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	text := strings.TrimSpace(failure.Message)
	if strings.HasPrefix(text, "interface ") && strings.HasSuffix(text, " does not exist") {
		text += ", and its network needs it on this host: make that bridge, or let fulmar up do so"
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_START, "unit %s cannot be started: %s", s.Unit, text)
}

// passing reports whether a daemon's failure may pass by itself: it is about the daemon, not about what was asked.
func passing(message string) bool {
	return strings.HasPrefix(message, "could not create unikernel") || strings.Contains(message, "try again")
}
