package messages

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// maxLabel is the longest name that albatross takes for an instance, in bytes.
const maxLabel = 63

var name = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckName refuses what cannot be the name of a stack, a unit, a network or a host: such a name stands in subjects,
// in keys and in the name that albatross gives an instance, so it is made of lower-case letters, digits and hyphens,
// neither begins nor ends with a hyphen, and has at most 63 bytes. What says what is named, as in "stack".
func CheckName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the name of the %s is empty", what)
	case len(s) > maxLabel:
		return fmt.Errorf("the name of the %s has %d bytes, more than %d", what, len(s), maxLabel)
	case !name.MatchString(s):
		return fmt.Errorf("%s %q: a name is made of lower-case letters, digits and hyphens, and begins and ends with a letter or a digit", what, s)
	}
	return nil
}

// InstanceName is the name of the instance that a generation makes for a unit: web.web.42. It is never reused.
func InstanceName(stack, unit string, generation uint64) string {
	return stack + "." + unit + "." + strconv.FormatUint(generation, 10)
}

// ParseInstance takes the name of an instance apart. It reports false for a name that no generation of ours made.
func ParseInstance(s string) (stack, unit string, generation uint64, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || CheckName("stack", parts[0]) != nil || CheckName("unit", parts[1]) != nil {
		return "", "", 0, false
	}
	generation, ok = parseGeneration(parts[2])
	if !ok {
		return "", "", 0, false
	}
	return parts[0], parts[1], generation, true
}

// parseGeneration reads a generation, which has one form only: no sign, no leading zero, not 0.
func parseGeneration(s string) (uint64, bool) {
	generation, err := strconv.ParseUint(s, 10, 64)
	return generation, err == nil && generation != 0 && strconv.FormatUint(generation, 10) == s
}

// DeploymentName is how people name a deployment: web-42.
func DeploymentName(stack string, generation uint64) string {
	return stack + "-" + strconv.FormatUint(generation, 10)
}

// ParseDeployment takes the name of a deployment apart.
func ParseDeployment(s string) (stack string, generation uint64, err error) {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return "", 0, fmt.Errorf("deployment %q: want STACK-GENERATION, as web-42", s)
	}
	generation, ok := parseGeneration(s[i+1:])
	if !ok || CheckName("stack", s[:i]) != nil {
		return "", 0, fmt.Errorf("deployment %q: want STACK-GENERATION, as web-42", s)
	}
	return s[:i], generation, nil
}
