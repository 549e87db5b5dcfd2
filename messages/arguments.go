package messages

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// Address is what the arguments of a unit can say about its place.
type Address struct {
	IP        string // its own address, as 10.0.0.7
	PrefixLen int    // of its network, as 24
	Gateway   string // of its network
	Stack     string
	Unit      string
}

// addressFields are what an argument can name of its [Address].
var addressFields = []string{"IP", "PrefixLen", "Gateway", "Stack", "Unit"}

// NewAddress makes the address of a unit in a network.
func NewAddress(stack, unit string, ip netip.Addr, prefix netip.Prefix, gateway string) Address {
	return Address{IP: ip.String(), PrefixLen: prefix.Bits(), Gateway: gateway, Stack: stack, Unit: unit}
}

// RenderArgs renders the arguments of a unit. ip gives the address of another unit of the stack.
func RenderArgs(args []string, self Address, ip func(unit string) (string, error)) ([]string, error) {
	rendered := make([]string, 0, len(args))
	left := MaxArgs + 1 // as a space stands between two
	for _, arg := range args {
		t, err := parseArg(arg, ip)
		if err != nil {
			return nil, err
		}
		b := bounded{left: left - 1}
		if err := t.Execute(&b, self); errors.Is(err, errTooLong) {
			return nil, fmt.Errorf("argument %q: %w", arg, errTooLong)
		} else if err != nil {
			return nil, fmt.Errorf("argument %q: %s", arg, execPrefix.ReplaceAllString(err.Error(), ""))
		}
		left = b.left
		rendered = append(rendered, b.String())
	}
	return rendered, nil
}

// execPrefix is what the library writes before its reason, for programmers.
var execPrefix = regexp.MustCompile(`^template: argument:\d+(:\d+)?: (executing "argument" at )?`)

var errTooLong = fmt.Errorf("the arguments are longer than %d bytes when they are rendered", MaxArgs)

// bounded is a text that refuses to grow beyond what is left.
type bounded struct {
	strings.Builder
	left int
}

// Write adds to the text, or is an error when that makes it too long.
func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

// ArgUses gives the units whose address the arguments of a unit use, sorted. The names must be literal: an argument
// that computes the name of a unit is refused, because nobody could tell in which order to lease.
func ArgUses(args []string) ([]string, error) {
	var uses []string
	for _, arg := range args {
		t, err := parseArg(arg, func(string) (string, error) { return "", nil })
		if err != nil {
			return nil, err
		}
		if err := walk(t.Root, &uses); err != nil {
			return nil, fmt.Errorf("argument %q: %w", arg, err)
		}
	}
	slices.Sort(uses)
	return slices.Compact(uses), nil
}

func parseArg(arg string, ip func(string) (string, error)) (*template.Template, error) {
	t, err := template.New("argument").Option("missingkey=error").Funcs(template.FuncMap{"ip": ip}).Parse(arg)
	if err != nil {
		return nil, fmt.Errorf("argument %q does not parse: %s", arg, execPrefix.ReplaceAllString(err.Error(), ""))
	}
	return t, nil
}

// walk collects the literal operands of the function ip.
func walk(n parse.Node, uses *[]string) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := walk(c, uses); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		return walk(n.Pipe, uses)
	case *parse.PipeNode:
		if n == nil {
			return nil
		}
		for i, c := range n.Cmds {
			if err := walkCommand(c, i > 0, uses); err != nil {
				return err
			}
		}
	case *parse.ChainNode:
		return walk(n.Node, uses)
	case *parse.FieldNode:
		if len(n.Ident) != 1 || !slices.Contains(addressFields, n.Ident[0]) {
			return fmt.Errorf("there is no %s, but %s", n, "."+strings.Join(addressFields, ", ."))
		}
	case *parse.IfNode, *parse.RangeNode, *parse.WithNode, *parse.TemplateNode:
		return fmt.Errorf("only values and functions are allowed, not %q", n.String())
	}
	return nil
}

func walkCommand(c *parse.CommandNode, piped bool, uses *[]string) error {
	if id, ok := c.Args[0].(*parse.IdentifierNode); ok && id.Ident == "ip" {
		if len(c.Args) != 2 || piped {
			return fmt.Errorf(`ip takes the name of a unit in quotes, as {{ip "signer"}}`)
		}
		s, ok := c.Args[1].(*parse.StringNode)
		if !ok {
			return fmt.Errorf(`ip takes the name of a unit in quotes, as {{ip "signer"}}`)
		}
		*uses = append(*uses, s.Text)
		return nil
	}
	for _, a := range c.Args {
		if id, ok := a.(*parse.IdentifierNode); ok { // what a function computes has no bound
			return fmt.Errorf("only values and the function ip are allowed, not %q", id.Ident)
		}
		if err := walk(a, uses); err != nil {
			return err
		}
	}
	return nil
}

// LeaseOrder gives the names of units in the order in which they are leased: those that are used before those that use
// them, else as they stand. uses gives, by unit, the units it uses. A unit that is not there and a cycle are refused
// by name.
func LeaseOrder(units []string, uses map[string][]string) ([]string, error) {
	var order, path []string
	done := map[string]bool{}
	var visit func(string) error
	visit = func(u string) error {
		if done[u] {
			return nil
		}
		if i := slices.Index(path, u); i >= 0 {
			return fmt.Errorf("units use one another in a circle: %s", strings.Join(append(path[i:], u), " uses "))
		}
		path = append(path, u)
		for _, v := range uses[u] {
			if !slices.Contains(units, v) {
				return fmt.Errorf("unit %s uses the address of unit %q, which the stack does not have", u, v)
			}
			if err := visit(v); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		done[u] = true
		order = append(order, u)
		return nil
	}
	for _, u := range units {
		if err := visit(u); err != nil {
			return nil, err
		}
	}
	return order, nil
}
