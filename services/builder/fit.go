package builder

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/solo5"
)

// image is what the builder knows of an image in the store.
type image struct {
	digest string // SHA-256, hexadecimal
	size   uint64
	solo5  *solo5.Image
}

// fit gives the facts of a unit from its image, or refuses an image that its host cannot run as it was asked for.
func fit(spec *fulmarv1.UnitSpec, i image, host *fulmarv1.Host) (*fulmarv1.Unit, error) {
	refuse := func(err error) error {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "image %s: %w", i.digest[:12], err)
	}
	target := i.solo5.Target.String()
	if !slices.Contains(host.GetTargets(), target) {
		runs := strings.Join(host.GetTargets(), ", ")
		if runs == "" {
			runs = "nothing"
		}
		return nil, refuse(fmt.Errorf("its target %s is not supported by host %s, which runs %s", target, host.GetName(), runs))
	}
	if err := i.solo5.CheckMemory(int(spec.GetMemory())); err != nil {
		return nil, refuse(err)
	}
	device, err := netDevice(spec.GetDevice(), i.solo5.Devices)
	if err != nil {
		return nil, refuse(err)
	}
	return &fulmarv1.Unit{Name: spec.GetName(), Image: i.digest, ImageSize: i.size, Target: target, Device: device}, nil
}

// room refuses a content for which its host has not the CPUs or the memory. What the host does not tell is not checked.
func room(c *fulmarv1.Content, host *fulmarv1.Host) error {
	refuse := func(format string, args ...any) error {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, format, args...)
	}
	memory := host.GetMemoryMb()
	var sum uint64
	for _, u := range c.GetUnits() {
		for _, id := range u.GetCpus() {
			if len(host.GetCpus()) > 0 && !slices.Contains(host.GetCpus(), id) {
				return refuse("unit %s: host %s has no CPU %d; it has %s", u.GetName(), host.GetName(), id, ranges(host.GetCpus()))
			}
		}
		if memory > 0 && uint64(u.GetMemory()) > memory {
			return refuse("unit %s: it asks for %d MB of memory, and host %s has %d MB", u.GetName(), u.GetMemory(), host.GetName(), memory)
		}
		sum += uint64(u.GetMemory())
	}
	if memory > 0 && sum > memory {
		return refuse("the units ask for %d MB of memory together, and host %s has %d MB", sum, host.GetName(), memory)
	}
	return nil
}

// ranges writes ids in ascending order as 0-3,6.
func ranges(ids []uint32) string {
	var parts []string
	for i := 0; i < len(ids); {
		last := i
		for last+1 < len(ids) && ids[last+1] == ids[last]+1 {
			last++
		}
		part := strconv.FormatUint(uint64(ids[i]), 10)
		if last > i {
			part += "-" + strconv.FormatUint(uint64(ids[last]), 10)
		}
		parts = append(parts, part)
		i = last + 1
	}
	return strings.Join(parts, ",")
}

// netDevice gives the device of a manifest that is joined to the network: the one that the request names, or the only
// one. The manifest must have no other device, because nothing would be attached to it.
func netDevice(named string, devices []solo5.Device) (string, error) {
	var nets, others []string
	for _, d := range devices {
		if d.Type == solo5.NetDevice {
			nets = append(nets, d.Name)
		} else {
			others = append(others, fmt.Sprintf("%s device %q", d.Type, d.Name))
		}
	}
	if named == "" && len(nets) == 1 {
		named = nets[0]
	}
	found := false
	for _, n := range nets {
		if n == named {
			found = true
		} else {
			others = append(others, fmt.Sprintf("net device %q", n))
		}
	}
	switch {
	case named != "" && !found:
		return "", fmt.Errorf("its manifest has no net device %q, which the request names", named)
	case len(others) > 0:
		return "", fmt.Errorf("its manifest has devices that the request does not name: %s", strings.Join(others, ", "))
	case len(nets) == 0:
		return "", errors.New("its manifest has no net device")
	}
	return named, nil
}
