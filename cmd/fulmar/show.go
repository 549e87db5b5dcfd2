package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"fulmar/bus"
	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// table prints rows for people in columns.
func (e *env) table(header string, rows []string) error {
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, strings.ReplaceAll(header, " ", "\t")); err != nil {
		return err
	}
	for _, r := range rows {
		if _, err := fmt.Fprintln(w, r); err != nil {
			return err
		}
	}
	return w.Flush()
}

type psCmd struct {
	All bool `short:"a" help:"Stacks without units too."`
}

// Run lists the stacks and their instances.
func (c *psCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	heads, err := readable(e, b.Heads)
	if err != nil {
		return err
	}
	hosts, err := readable(e, b.Hosts)
	if err != nil {
		return err
	}
	running := onHosts(hosts)
	health, err := e.healths(b, heads, running)
	if err != nil {
		return err
	}
	var rows []string
	for _, stack := range slices.Sorted(maps.Keys(heads)) {
		if e.cli.JSON {
			if err := e.printHead(heads[stack], running, health); err != nil {
				return err
			}
			continue
		}
		for _, d := range heads[stack].GetDeployments() {
			rows = append(rows, deploymentRows(stack, d, running, health, c.All)...)
		}
	}
	if e.cli.JSON {
		return nil
	}
	if err := e.table("DEPLOYMENT STATE UNIT INSTANCE ADDRESS PORTS RUNS HEALTH HOST", rows); err != nil {
		return err
	}
	for _, stack := range slices.Sorted(maps.Keys(heads)) {
		live := messages.InState(heads[stack], fulmarv1.State_STATE_LIVE)
		for _, i := range live.GetInstances() {
			if seen := running[i.GetName()]; seen != nil && !seen.GetRunning() {
				fmt.Fprintf(e.out, "%s %s; %sfulmar renew %s starts a fresh one\n", i.GetName(), seen.GetExit(), startsAgain(specOf(live.GetContent(), i.GetUnit()), seen.GetExit()), stack)
			}
		}
	}
	return nil
}

// onHosts gives what the hosts said of each instance, by its name.
func onHosts(hosts map[string]*fulmarv1.Host) map[string]*fulmarv1.HostInstance {
	all := map[string]*fulmarv1.HostInstance{}
	for _, h := range hosts {
		for _, i := range h.GetInstances() {
			all[i.GetName()] = i
		}
	}
	return all
}

func deploymentRows(stack string, d *fulmarv1.HeadDeployment, running map[string]*fulmarv1.HostInstance, health map[string]health, all bool) []string {
	name, state := messages.DeploymentName(stack, d.GetGeneration()), stateName(d.GetState())
	if len(d.GetInstances()) == 0 {
		if !all && d.GetState() == fulmarv1.State_STATE_LIVE {
			return nil
		}
		return []string{fmt.Sprintf("%s\t%s\t-\t-\t-\t-\t-\t-\t%s", name, state, d.GetHost())}
	}
	var rows []string
	for _, i := range d.GetInstances() {
		published := "-"
		if d.GetState() == fulmarv1.State_STATE_LIVE {
			published = portList(specOf(d.GetContent(), i.GetUnit()))
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", name, state, i.GetUnit(), i.GetName(), i.GetAddress(), published, runs(running[i.GetName()]), healthIn(d, health[i.GetName()]), d.GetHost()))
	}
	return rows
}

// portList says the ports of a unit, as 8080:80/tcp,53:53/udp.
func portList(u *fulmarv1.UnitSpec) string {
	var list []string
	for _, p := range u.GetPorts() {
		list = append(list, fmt.Sprintf("%d:%d/%s", p.GetPort(), p.GetTarget(), p.GetProtocol()))
	}
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}

func runs(i *fulmarv1.HostInstance) string {
	switch {
	case i == nil:
		return "no"
	case i.GetRunning() && i.GetRestarts() > 0:
		return fmt.Sprintf("yes, again (%d)", i.GetRestarts())
	case i.GetRunning():
		return "yes"
	case i.GetRestarts() > 0:
		return fmt.Sprintf("%s, again (%d)", i.GetExit(), i.GetRestarts())
	}
	return i.GetExit()
}

// startsAgain says what the host does about a unit that has ended in a way that it told.
func startsAgain(u *fulmarv1.UnitSpec, exit string) string {
	if u.GetRestart() == "" {
		return ""
	}
	does := "its host starts it again if its status allows"
	var status int
	if _, err := fmt.Sscanf(exit, "exited with status %d", &status); err == nil && messages.StartsAgain(u.GetRestart(), status) {
		does = "its host starts it again"
	} else if err == nil || strings.HasPrefix(exit, "killed by signal") {
		does = "after that its host does not start it again"
	}
	return fmt.Sprintf("%s (restart: %s); ", does, u.GetRestart())
}

func stateName(s fulmarv1.State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

type describeCmd struct {
	Stack string `arg:"" help:"Name of the stack."`
}

// Run says everything about a stack.
func (c *describeCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	head, err := e.head(b, c.Stack)
	if err != nil {
		return err
	}
	hosts, err := readable(e, b.Hosts)
	if err != nil {
		return err
	}
	running := onHosts(hosts)
	health, err := e.healths(b, map[string]*fulmarv1.Head{c.Stack: head}, running)
	if err != nil {
		return err
	}
	if e.cli.JSON {
		return e.printHead(head, running, health)
	}
	fmt.Fprintf(e.out, "stack %s, newest generation %d\n", head.GetStack(), head.GetNewest())
	for _, d := range head.GetDeployments() {
		fmt.Fprintf(e.out, "\n%s  %s on host %s, network %s, drain %s\n", messages.DeploymentName(c.Stack, d.GetGeneration()), stateName(d.GetState()), d.GetHost(), d.GetContent().GetNetwork(), d.GetContent().GetDrain().AsDuration())
		describeContent(e, d.GetContent())
		for _, i := range d.GetInstances() {
			fmt.Fprintf(e.out, "  instance %s at %s, runs: %s, health: %s\n", i.GetName(), i.GetAddress(), runs(running[i.GetName()]), healthIn(d, health[i.GetName()]).because())
		}
		describeBuilds(e, b, c.Stack, d.GetGeneration())
	}
	if head.GetPrevious() != nil {
		fmt.Fprintf(e.out, "\nprevious content (fulmar rollback %s)\n", c.Stack)
		describeContent(e, head.GetPrevious())
	}
	fmt.Fprintln(e.out, "\nevents")
	return (&eventsCmd{Stack: c.Stack}).print(e, b)
}

// describeBuilds says where the images of a deployment came from, if its last event can be read.
func describeBuilds(e *env, b *bus.Bus, stack string, generation uint64) {
	last, _, err := b.Last(e.ctx, stack, generation)
	if err != nil {
		e.leftOut(err)
	}
	for _, u := range last.GetDeployment().GetUnits() {
		if build := u.GetBuild(); build != nil {
			fmt.Fprintf(e.out, "  build %s: %s, docker image %s, log %s\n", u.GetName(), provenance(build), orNone(build.GetImageDigest()), orNone(build.GetLog()))
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func describeContent(e *env, c *fulmarv1.Content) {
	for _, u := range c.GetUnits() {
		image := u.GetImage().GetSha256()
		if image == "" {
			image = messages.SourceText(u.GetImage())
		}
		fmt.Fprintf(e.out, "  unit %s: image %s, memory %d MB, ports %s, args %q\n    %s\n", u.GetName(), image, u.GetMemory(), portList(u), u.GetArgs(), unitText(u))
	}
}

type eventsCmd struct {
	Stack  string `arg:"" optional:"" help:"Only this stack."`
	Follow bool   `short:"f" help:"Go on with what happens from now on."`
}

// Run prints what happened.
func (c *eventsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	return c.print(e, b)
}

func (c *eventsCmd) print(e *env, b *bus.Bus) error {
	stack := "*"
	if c.Stack != "" {
		if err := messages.CheckName("stack", c.Stack); err != nil {
			return err
		}
		stack = c.Stack
	}
	if !c.Follow {
		found := false
		err := e.readLog(b, func(s said) error {
			found = true
			return c.one(e, s)
		}, messages.StackFilter(stack))
		if err == nil && !found && c.Stack != "" {
			_, err = e.head(b, c.Stack)
		}
		return err
	}
	if c.Stack != "" {
		if _, err := e.head(b, c.Stack); err != nil {
			fmt.Fprintf(e.err, "note: %v; its events are printed once there are any\n", err)
		}
	}
	err := e.followLog(e.ctx, b, 0, func(s said) (bool, error) { return false, c.one(e, s) }, messages.StackFilter(stack))
	if errors.Is(err, context.Canceled) {
		return nil // the user has seen enough
	}
	return err
}

// one prints one event.
func (c *eventsCmd) one(e *env, s said) error {
	if e.cli.JSON {
		return e.printSaid(s)
	}
	what := facts(s)
	if s.subject.Verb.Observation() {
		what = s.subject.Unit + ": " + s.event.GetReason()
	}
	_, err := fmt.Fprintln(e.out, strings.TrimRight(fmt.Sprintf("%s  %-12s %-10s %s", s.time.Local().Format("2006-01-02 15:04:05.000"),
		messages.DeploymentName(s.subject.Stack, s.subject.Generation), s.subject.Verb, what), " "))
	return err
}

type logsCmd struct {
	Stack  string `arg:"" help:"Name of the stack; with --build that of a deployment, as web-42."`
	Build  bool   `help:"The logs of the builds of a deployment, in place of the consoles."`
	Unit   string `short:"u" help:"Only this unit."`
	Follow bool   `short:"f" help:"Go on with what is printed from now on."`
	Lines  int    `short:"n" default:"100" help:"Lines of history of each instance at most."`
}

// Run prints the consoles of a stack's instances, or the logs of builds.
func (c *logsCmd) Run(e *env) error {
	b, closeBus, err := e.connect()
	if err != nil {
		return err
	}
	defer closeBus()
	if c.Build {
		l := buildLogs{env: e, bus: b, unit: c.Unit}
		if l.stack, l.generation, err = messages.ParseDeployment(c.Stack); err != nil {
			return err
		}
		return l.run(c.Follow)
	}
	head, err := e.head(b, c.Stack)
	if err != nil {
		return err
	}
	if err := c.instances(e, head); err != nil {
		return err
	}
	live := make(chan *nats.Msg, 1024)
	if c.Follow { // before the history, so that no line falls between
		unit := "*"
		if c.Unit != "" {
			unit = c.Unit
		}
		sub, err := b.NC.ChanSubscribe(messages.ConsoleSubject("*", c.Stack+"."+unit+".*"), live)
		if err != nil {
			return fmt.Errorf("follow the consoles of %s: %w", c.Stack, err)
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	if err := c.history(e, b, head); err != nil {
		return err
	}
	for c.Follow {
		select {
		case <-e.ctx.Done():
			return nil
		case m := <-live:
			instance := strings.Join(strings.Split(m.Subject, ".")[3:], ".")
			if err := c.line(e, instance, m.Header.Get(messages.TimeHeader), string(m.Data)); err != nil {
				return err
			}
		}
	}
	return nil
}

// instances refuses a unit that the stack has not, and notes that it has nothing that could print.
func (c *logsCmd) instances(e *env, head *fulmarv1.Head) error {
	some, asked := false, c.Unit == ""
	for _, d := range head.GetDeployments() {
		asked = asked || specOf(d.GetContent(), c.Unit) != nil
		some = some || len(d.GetInstances()) > 0
	}
	if !asked {
		return fmt.Errorf("stack %s has no unit %q; fulmar describe %s lists them", c.Stack, c.Unit, c.Stack)
	}
	if !some {
		fmt.Fprintf(e.err, "note: stack %s has no instances; fulmar events %s says what happened\n", c.Stack, c.Stack)
	}
	return nil
}

func (c *logsCmd) history(e *env, b *bus.Bus, head *fulmarv1.Head) error {
	seen := map[string]bool{}
	for _, d := range head.GetDeployments() {
		for _, i := range d.GetInstances() {
			if seen[i.GetName()] || c.Unit != "" && c.Unit != i.GetUnit() {
				continue
			}
			seen[i.GetName()] = true
			lines, err := b.Console(e.ctx, d.GetHost(), i.GetName(), c.Lines)
			if err != nil {
				return err
			}
			for _, l := range lines {
				if err := c.line(e, i.GetName(), l.GetTime().AsTime().Format(time.RFC3339Nano), l.GetLine()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *logsCmd) line(e *env, instance, at, line string) error {
	if e.cli.JSON {
		return e.printJSON(map[string]string{"instance": instance, "time": at, "line": line})
	}
	_, err := fmt.Fprintf(e.out, "%s | %s\n", instance, line)
	return err
}
