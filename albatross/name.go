package albatross

import (
	"crypto/md5"
	"errors"
	"fmt"
	"net"
	"strings"
)

// ErrName reports a name or path that the daemon would refuse.
var ErrName = errors.New("albatross: invalid name")

const maxLabel = 63

// Path is a sequence of labels joined by colons: the owner of unikernels, and the place of a policy. The zero Path is the root.
type Path struct{ s string }

// ParsePath reads a path as "a:b" or ":a:b"; the empty string is the root. Labels are lower-cased.
// The error is an [ErrName] that gives the offset.
func ParsePath(s string) (Path, error) {
	rest := strings.TrimPrefix(s, ":")
	if s == "" {
		return Path{}, nil
	}
	off := len(s) - len(rest)
	for label := range strings.SplitSeq(rest, ":") {
		if i, reason := checkLabel(label); reason != "" {
			return Path{}, fmt.Errorf("%w %q: %s at offset %d", ErrName, abbreviate(s), reason, off+i)
		}
		off += len(label) + 1
	}
	return Path{s: strings.ToLower(rest)}, nil
}

// String returns the labels joined by colons; the root is empty.
func (p Path) String() string { return p.s }

// IsRoot tells whether p has no labels.
func (p Path) IsRoot() bool { return p.s == "" }

// Labels returns the labels from the root down.
func (p Path) Labels() []string {
	if p.s == "" {
		return nil
	}
	return strings.Split(p.s, ":")
}

// Contains tells whether q is p or below p.
func (p Path) Contains(q Path) bool {
	return p.s == "" || p.s == q.s || strings.HasPrefix(q.s, p.s+":")
}

// Parent returns the path without its last label, and false if p is the root.
func (p Path) Parent() (Path, bool) {
	if p.s == "" {
		return Path{}, false
	}
	return Path{s: p.s[:max(0, strings.LastIndexByte(p.s, ':'))]}, true
}

// Name returns the name of the path itself, which has no label: policies are asked for and set by it.
func (p Path) Name() Name { return Name{path: p} }

// Join returns what the daemon means by a name relative to p.
func (p Path) Join(n Name) Name {
	switch {
	case p.s == "":
		return n
	case n.path.s == "":
		return Name{path: p, label: n.label}
	}
	return Name{path: Path{s: p.s + ":" + n.path.s}, label: n.label}
}

// Relative is the inverse of Join: how a daemon that was asked for p names n. It is false if n is not in p or below.
func (p Path) Relative(n Name) (Name, bool) {
	switch {
	case !p.Contains(n.path):
		return Name{}, false
	case p.s == n.path.s:
		return Name{label: n.label}, true
	case p.s == "":
		return n, true
	}
	return Name{path: Path{s: n.path.s[len(p.s)+1:]}, label: n.label}, true
}

// Name names a unikernel, a block device or a policy: a path, and a label unless the path itself is meant.
// Names are comparable with ==. The zero Name is the root, ":".
type Name struct {
	path  Path
	label string
}

// ParseName reads a name: "a:b:c" or ":a:b:c" is the label c in the path a:b; "c" and ":c" are the label c in the root;
// "a:b:" is a path without a label; ":" is the root. Labels have 1 to 63 letters, digits, hyphens and dots, no leading
// hyphen, and are lower-cased. The error is an [ErrName] that gives the offset.
func ParseName(s string) (Name, error) {
	if s == "" {
		return Name{}, fmt.Errorf("%w: it is empty", ErrName)
	}
	if path, ok := strings.CutSuffix(s, ":"); ok {
		p, err := ParsePath(path)
		return Name{path: p}, err
	}
	p, err := ParsePath(s)
	if err != nil {
		return Name{}, err
	}
	return p.split(), nil
}

// MakeName joins labels to a name; the last is the label. Unlike [ParseName] it keeps upper case, as the reference does for
// names that come from certificates.
func MakeName(labels ...string) (Name, error) {
	if len(labels) == 0 {
		return Name{}, fmt.Errorf("%w: it is empty", ErrName)
	}
	for i, label := range labels {
		if off, reason := checkLabel(label); reason != "" {
			return Name{}, fmt.Errorf("%w: label %d %q: %s at offset %d", ErrName, i, abbreviate(label), reason, off)
		}
	}
	return Path{s: strings.Join(labels, ":")}.split(), nil
}

// split takes the last label of p as the label of a name.
func (p Path) split() Name {
	i := strings.LastIndexByte(p.s, ':')
	if i < 0 {
		return Name{label: p.s}
	}
	return Name{path: Path{s: p.s[:i]}, label: p.s[i+1:]}
}

// Path returns the path of n without its label.
func (n Name) Path() Path { return n.path }

// Label returns the label of n, or "" if n is a path.
func (n Name) Label() string { return n.label }

// HasLabel tells whether n names one thing and not a path.
func (n Name) HasLabel() bool { return n.label != "" }

// IsRoot tells whether n is ":".
func (n Name) IsRoot() bool { return n == Name{} }

// String returns the name as the daemon prints it: "path:label", ":label" in the root, "path:" for a path, ":" for the root.
func (n Name) String() string { return n.path.s + ":" + n.label }

// MarshalText returns the same as String.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText is [ParseName].
func (n *Name) UnmarshalText(text []byte) error {
	parsed, err := ParseName(string(text))
	if err != nil {
		return err
	}
	*n = parsed
	return nil
}

// MAC returns the address that the daemon gives to a unikernel's network device unless told otherwise: the prefix 00:80:41
// and the first three bytes of the MD5 of the device's name followed by the unikernel's.
func MAC(name Name, device string) net.HardwareAddr {
	sum := md5.Sum([]byte(device + name.String()))
	return net.HardwareAddr{0x00, 0x80, 0x41, sum[0], sum[1], sum[2]}
}

// checkLabel returns what is wrong with a label and where, or an empty reason.
func checkLabel(label string) (offset int, reason string) {
	switch {
	case label == "":
		return 0, "label is empty"
	case len(label) > maxLabel:
		return maxLabel, "label is longer than 63 bytes"
	case label[0] == '-':
		return 0, "label starts with a hyphen"
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return i, "label has a byte other than letters, digits, hyphen and dot"
		}
	}
	return 0, ""
}

// abbreviate bounds what an error quotes of an input.
func abbreviate(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}
