package monitor

import (
	"slices"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// row is the row of equal results that a check has had, and what they add up to.
type row struct {
	good, bad int
	down      bool
}

// next adds a result. A row of failures bad ones takes the check down, a row of successes good ones brings it up.
func (r row) next(ok bool, successes, failures int) row {
	if ok {
		r.good, r.bad = r.good+1, 0
		r.down = r.down && r.good < successes
	} else {
		r.good, r.bad = 0, r.bad+1
		r.down = r.down || r.bad >= failures
	}
	return r
}

// ill reports whether an observation says that its unit does not serve.
func ill(v messages.Verb) bool { return v == messages.Unhealthy || v == messages.Exited }

// change gives what is to be said of an instance of which said was said last, or nothing. An instance that exited is
// silent until it runs again and is well.
func change(said messages.Verb, exited bool, rows []row) messages.Verb {
	down := slices.ContainsFunc(rows, func(r row) bool { return r.down })
	well := said == "" || said == messages.Recovered
	switch {
	case exited && said != messages.Exited:
		return messages.Exited
	case exited:
		return ""
	case down && well:
		return messages.Unhealthy
	case !down && !well:
		return messages.Recovered
	}
	return ""
}

// target is an instance that is to be watched, with the checks of the newest deployment that refers to it.
type target struct {
	instance   string
	stack      string
	unit       string
	address    string
	generation uint64
	checks     []*fulmarv1.HealthCheck
	deployment *fulmarv1.Deployment
}

// targets gives the instances of a head that are to be watched on a host: those of what is live or staged there.
func targets(h *fulmarv1.Head, host string) []target {
	var all []target
	seen := map[string]bool{}
	for _, d := range slices.Backward(h.GetDeployments()) {
		if d.GetHost() != host || (d.GetState() != fulmarv1.State_STATE_LIVE && d.GetState() != fulmarv1.State_STATE_STAGED) {
			continue
		}
		deployment := deploymentOf(h.GetStack(), d)
		for _, i := range d.GetInstances() {
			if seen[i.GetName()] {
				continue
			}
			seen[i.GetName()] = true
			all = append(all, target{
				instance: i.GetName(), stack: h.GetStack(), unit: i.GetUnit(), address: i.GetAddress(), generation: d.GetGeneration(),
				checks: checksOf(d.GetContent(), i.GetUnit()), deployment: deployment,
			})
		}
	}
	return all
}

// deploymentOf is what an observation says of the deployment: what the head knows of it.
func deploymentOf(stack string, d *fulmarv1.HeadDeployment) *fulmarv1.Deployment {
	deployment := &fulmarv1.Deployment{
		Stack: stack, Generation: d.GetGeneration(), Content: d.GetContent(), Staged: d.GetStaged(), Deadline: d.GetDeadline(),
		Network: &fulmarv1.Network{Name: d.GetContent().GetNetwork(), Host: d.GetHost()},
	}
	for _, i := range d.GetInstances() {
		deployment.Units = append(deployment.Units, &fulmarv1.Unit{Name: i.GetUnit(), Instance: i})
	}
	return deployment
}

func checksOf(c *fulmarv1.Content, unit string) []*fulmarv1.HealthCheck {
	for _, u := range c.GetUnits() {
		if u.GetName() == unit {
			return u.GetHealth()
		}
	}
	return nil
}

func instanceOf(d *fulmarv1.Deployment, unit string) *fulmarv1.Instance {
	for _, u := range d.GetUnits() {
		if u.GetName() == unit {
			return u.GetInstance()
		}
	}
	return nil
}

// exitedEarly refuses a deployment one of whose instances exited before it was healthy.
func exitedEarly(h *fulmarv1.Host, d *fulmarv1.Deployment) error {
	for _, u := range d.GetUnits() {
		_, _, made, _ := messages.ParseInstance(u.GetInstance().GetName())
		for _, i := range h.GetInstances() {
			again := made == d.GetGeneration() && i.GetRestarts() > 0 // it exited and runs again; who is older may have before
			if i.GetName() == u.GetInstance().GetName() && (again || !i.GetRunning()) {
				return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_UNHEALTHY, "unit %s %s before it was healthy%s", u.GetName(), exitClause(i), lastLine(i))
			}
		}
	}
	return nil
}

func exitClause(i *fulmarv1.HostInstance) string {
	if i.GetExit() == "" {
		return "exited"
	}
	return i.GetExit()
}

func lastLine(i *fulmarv1.HostInstance) string {
	if i.GetLastLine() == "" {
		return ""
	}
	return ": " + i.GetLastLine()
}
