package messages

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Bounds and defaults of a request; the comments of request.proto name them.
const (
	DefaultDeadline = time.Minute
	DefaultDrain    = time.Minute
	DefaultMemory   = 32 // MB
	MaxMemory       = 1 << 20
	MaxUnits        = 64
	MaxPorts        = 1024
	MaxArgs         = 8191 // bytes of all arguments of a unit, joined by spaces: what a tender takes
	MaxChecks       = 16   // of a unit
	MaxCause        = 256  // bytes
	MaxRequest      = 64 << 10
)

// What a unit asks for when it ends by itself; nothing stands for never.
const (
	RestartNever     = "never"
	RestartOnFailure = "on-failure"
	RestartAlways    = "always"
)

// StartsAgain reports whether a unit that asks for restart is started again after it exited with a status. Albatross never does it
// after those by which a unikernel says that another try is of no use, nor after a signal, which is no status.
func StartsAgain(restart string, status int) bool {
	switch {
	case status == 1 || status >= 60 && status <= 64:
		return false
	case restart == RestartOnFailure:
		return status != 0
	}
	return restart == RestartAlways
}

// longGeneration has as many digits as any generation will: one request a second makes it in 300 years.
const longGeneration = 9_999_999_999

// Normalize checks the request for a stack and gives it with its defaults filled in, so that equal requests are equal.
// The error is a [Refusal] that names the culprit. The request that was given is not changed.
func Normalize(stack string, r *fulmarv1.DeployRequest) (*fulmarv1.DeployRequest, error) {
	n := proto.CloneOf(r)
	if err := normalize(stack, n); err != nil {
		return nil, Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%w", err)
	}
	return n, nil
}

func normalize(stack string, r *fulmarv1.DeployRequest) error {
	if err := CheckName("stack", stack); err != nil {
		return err
	}
	if len(r.GetUnits()) == 0 {
		return fmt.Errorf("units: a deployment needs at least one; to take the stack out of service, retire it")
	}
	if len(r.GetUnits()) > MaxUnits {
		return fmt.Errorf("units: %d, more than %d", len(r.GetUnits()), MaxUnits)
	}
	if r.GetNetwork() != "" {
		if err := CheckName("network", r.GetNetwork()); err != nil {
			return err
		}
	}
	if len(r.GetUnits()) == 1 && r.GetUnits()[0].GetName() == "" {
		r.Units[0].Name = stack
	}
	var err error
	if r.Deadline, err = duration("deadline", r.GetDeadline(), DefaultDeadline, time.Second, time.Hour); err != nil {
		return err
	}
	if r.Drain, err = duration("drain", r.GetDrain(), DefaultDrain, 0, 24*time.Hour); err != nil {
		return err
	}
	if n := proto.Size(r); n > MaxRequest {
		return fmt.Errorf("the request has %d bytes, more than %d", n, MaxRequest)
	}
	if n := len(r.GetCause()); n > MaxCause {
		return fmt.Errorf("cause: %d bytes, more than %d", n, MaxCause)
	}
	names, ports := map[string]bool{}, map[string]string{}
	for _, u := range r.GetUnits() {
		if err := normalizeUnit(stack, u, ports); err != nil {
			return err
		}
		if names[u.GetName()] {
			return fmt.Errorf("unit %s stands twice in the stack", u.GetName())
		}
		names[u.GetName()] = true
	}
	if r.GetWatch() {
		pullWatched(r)
	}
	if r.GetWatch() && !slices.ContainsFunc(r.GetUnits(), func(u *fulmarv1.UnitSpec) bool { return Watchable(u.GetImage()) }) {
		return fmt.Errorf("watch: no source of the units can move: a git ref, a docker tag, a url with sha256_url")
	}
	_, err = ContentOrder(&fulmarv1.Content{Units: r.GetUnits()})
	return err
}

// ContentOrder gives the names of the units of a content in the order in which they are leased.
func ContentOrder(c *fulmarv1.Content) ([]string, error) {
	var names []string
	uses := map[string][]string{}
	for _, u := range c.GetUnits() {
		used, err := ArgUses(u.GetArgs())
		if err != nil {
			return nil, fmt.Errorf("unit %s: %w", u.GetName(), err)
		}
		names = append(names, u.GetName())
		uses[u.GetName()] = used
	}
	return LeaseOrder(names, uses)
}

func normalizeUnit(stack string, u *fulmarv1.UnitSpec, ports map[string]string) error {
	if err := CheckName("unit", u.GetName()); err != nil {
		return err
	}
	if n := len(InstanceName(stack, u.GetName(), longGeneration)) - maxLabel; n > 0 {
		names := len(stack) + len(u.GetName())
		return fmt.Errorf("stack %s with unit %s: the names have %d bytes together, more than the %d that the name of an instance leaves them", stack, u.GetName(), names, names-n)
	}
	if u.GetMemory() == 0 {
		u.Memory = DefaultMemory
	}
	if u.GetMemory() > MaxMemory {
		return fmt.Errorf("unit %s: memory of %d MB is more than %d", u.GetName(), u.GetMemory(), MaxMemory)
	}
	for _, step := range []func(*fulmarv1.UnitSpec) error{checkImage, checkArgs, func(u *fulmarv1.UnitSpec) error { return checkPorts(u, ports) }, checkHealth, checkRestart} {
		if err := step(u); err != nil {
			return fmt.Errorf("unit %s: %w", u.GetName(), err)
		}
	}
	return nil
}

func checkRestart(u *fulmarv1.UnitSpec) error {
	switch u.GetRestart() {
	case RestartNever:
		u.Restart = ""
	case "", RestartOnFailure, RestartAlways:
	default:
		return fmt.Errorf("restart %q is none of %s, %s and %s", u.GetRestart(), RestartNever, RestartOnFailure, RestartAlways)
	}
	return nil
}

// IsDigest reports whether s is a SHA-256 in lower-case hexadecimal.
func IsDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}

func checkArgs(u *fulmarv1.UnitSpec) error {
	if n := len(strings.Join(u.GetArgs(), " ")); n > MaxArgs {
		return fmt.Errorf("args: %d bytes, more than %d", n, MaxArgs)
	}
	for _, arg := range u.GetArgs() {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("argument %q has a NUL byte, which no command line can carry", arg)
		}
	}
	uses, err := ArgUses(u.GetArgs())
	if err != nil {
		return err
	}
	example := Address{IP: "192.0.2.1", PrefixLen: 24, Gateway: "192.0.2.254", Stack: "stack", Unit: u.GetName()}
	_, err = RenderArgs(u.GetArgs(), example, func(string) (string, error) { return example.IP, nil })
	if err != nil {
		return err
	}
	for _, used := range uses {
		if used == u.GetName() {
			return fmt.Errorf("its arguments use its own address by name: say {{.IP}}")
		}
	}
	return nil
}

func checkPorts(u *fulmarv1.UnitSpec, taken map[string]string) error {
	for _, p := range u.GetPorts() {
		if p.GetProtocol() == "" {
			p.Protocol = "tcp"
		}
		if p.GetProtocol() != "tcp" && p.GetProtocol() != "udp" {
			return fmt.Errorf("ports: protocol %q is neither tcp nor udp", p.GetProtocol())
		}
		if p.GetPort() < 1 || p.GetPort() > 65535 {
			return fmt.Errorf("ports: port %d is not within 1 to 65535", p.GetPort())
		}
		if p.GetTarget() == 0 {
			p.Target = p.GetPort()
		}
		if p.GetTarget() > 65535 {
			return fmt.Errorf("ports: target %d is not within 1 to 65535", p.GetTarget())
		}
		key := fmt.Sprintf("%d/%s", p.GetPort(), p.GetProtocol())
		if other, ok := taken[key]; ok {
			if other == u.GetName() {
				return fmt.Errorf("ports: %s stands twice", key)
			}
			return fmt.Errorf("ports: %s is published by unit %s already", key, other)
		}
		taken[key] = u.GetName()
	}
	if len(taken) > MaxPorts {
		return fmt.Errorf("ports: a stack publishes more than %d", MaxPorts)
	}
	return nil
}

func checkHealth(u *fulmarv1.UnitSpec) error {
	if len(u.GetHealth()) == 0 {
		u.Health = defaultHealth(u)
	}
	if n := len(u.GetHealth()); n > MaxChecks {
		return fmt.Errorf("health: %d checks, more than %d", n, MaxChecks)
	}
	for _, c := range u.GetHealth() {
		if err := normalizeCheck(c); err != nil {
			return fmt.Errorf("health: %w", err)
		}
	}
	return nil
}

func defaultHealth(u *fulmarv1.UnitSpec) []*fulmarv1.HealthCheck {
	var checks []*fulmarv1.HealthCheck
	seen := map[uint32]bool{}
	for _, p := range u.GetPorts() {
		if p.GetProtocol() == "tcp" && !seen[p.GetTarget()] {
			seen[p.GetTarget()] = true
			checks = append(checks, &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Tcp{Tcp: &fulmarv1.TcpProbe{Port: p.GetTarget()}}})
		}
	}
	if len(checks) == 0 {
		checks = append(checks, &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Icmp{Icmp: &fulmarv1.IcmpProbe{}}})
	}
	return checks
}

func normalizeCheck(c *fulmarv1.HealthCheck) error {
	var err error
	if c.Interval, err = duration("interval", c.GetInterval(), time.Second, 10*time.Millisecond, time.Hour); err != nil {
		return err
	}
	if c.Timeout, err = duration("timeout", c.GetTimeout(), time.Second, time.Millisecond, time.Minute); err != nil {
		return err
	}
	if c.GetStartDeadline() != nil {
		if c.StartDeadline, err = duration("start_deadline", c.GetStartDeadline(), 0, time.Millisecond, time.Hour); err != nil {
			return err
		}
	}
	if c.GetSuccesses() == 0 {
		c.Successes = 1
	}
	if c.GetFailures() == 0 {
		c.Failures = 3
	}
	if c.GetSuccesses() > 100 || c.GetFailures() > 100 {
		return fmt.Errorf("successes and failures are at most 100")
	}
	return normalizeProbe(c)
}

func normalizeProbe(c *fulmarv1.HealthCheck) error {
	switch p := c.GetProbe().(type) {
	case *fulmarv1.HealthCheck_Icmp:
		return nil
	case *fulmarv1.HealthCheck_Tcp:
		return checkPort("tcp", p.Tcp.GetPort())
	case *fulmarv1.HealthCheck_Http:
		return normalizeHTTP(p.Http)
	case *fulmarv1.HealthCheck_Dns:
		return normalizeDNS(p.Dns)
	}
	return fmt.Errorf("a check is one of icmp, tcp, http and dns")
}

func normalizeHTTP(p *fulmarv1.HttpProbe) error {
	if p.GetPort() == 0 {
		p.Port = 80
	}
	if p.GetPath() == "" {
		p.Path = "/"
	}
	if !strings.HasPrefix(p.GetPath(), "/") || strings.ContainsAny(p.GetPath(), " \r\n") {
		return fmt.Errorf("http: path %q does not begin with / or has a space in it", p.GetPath())
	}
	if s := p.GetStatus(); s != 0 && (s < 100 || s > 599) {
		return fmt.Errorf("http: status %d is not within 100 to 599", s)
	}
	if _, err := syntax.Parse(p.GetBody(), syntax.Perl); err != nil {
		return fmt.Errorf("http: body %q is not a regular expression: %w", p.GetBody(), code(err))
	}
	return checkPort("http", p.GetPort())
}

// code is why a regular expression does not parse, without the expression.
func code(err error) error {
	if e, ok := errors.AsType[*syntax.Error](err); ok {
		return errors.New(e.Code.String())
	}
	return err
}

func normalizeDNS(p *fulmarv1.DnsProbe) error {
	if p.GetPort() == 0 {
		p.Port = 53
	}
	if p.GetType() == "" {
		p.Type = "A"
	}
	switch p.GetType() {
	case "A", "AAAA", "NS", "SOA", "MX", "TXT":
	default:
		return fmt.Errorf("dns: type %q is none of A, AAAA, NS, SOA, MX and TXT", p.GetType())
	}
	if p.GetName() == "" || len(p.GetName()) > 253 {
		return fmt.Errorf("dns: name %q has not 1 to 253 bytes", p.GetName())
	}
	return checkPort("dns", p.GetPort())
}

func checkPort(what string, port uint32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%s: port %d is not within 1 to 65535", what, port)
	}
	return nil
}

func duration(field string, d *durationpb.Duration, def, low, high time.Duration) (*durationpb.Duration, error) {
	if d == nil {
		return durationpb.New(def), nil
	}
	if err := d.CheckValid(); err != nil {
		return nil, fmt.Errorf("%s: %w", field, plain(err))
	}
	if v := d.AsDuration(); v < low || v > high {
		return nil, fmt.Errorf("%s of %s is not within %s to %s", field, v, low, high)
	}
	return d, nil
}
