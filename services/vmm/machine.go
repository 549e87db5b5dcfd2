package vmm

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// onlineCPUs is where the kernel lists the CPUs of the machine, as 0-3,6.
const onlineCPUs = "/sys/devices/system/cpu/online"

// Machine is what the machine of a host has. The zero value knows nothing.
type Machine struct {
	CPUs   []uint32 // ids, ascending
	Memory uint64   // in MB
}

// thisMachine looks at the machine that vmm runs on.
func thisMachine() (Machine, error) {
	text, err := os.ReadFile(onlineCPUs)
	if err != nil {
		return Machine{}, fmt.Errorf("look at the CPUs of the machine: %w", err)
	}
	var m Machine
	if m.CPUs, err = parseCPUs(string(text)); err != nil {
		return Machine{}, fmt.Errorf("look at the CPUs of the machine: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return Machine{}, fmt.Errorf("look at the memory of the machine: %w", err)
	}
	m.Memory = info.Totalram * uint64(info.Unit) >> 20
	return m, nil
}

// parseCPUs reads a list of ids as the kernel writes it.
func parseCPUs(text string) ([]uint32, error) {
	var ids []uint32
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		from, to, two := strings.Cut(part, "-")
		if !two {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is no list of CPUs", text)
		}
		last, err := strconv.ParseUint(to, 10, 16)
		if err != nil || last < first {
			return nil, fmt.Errorf("%q is no list of CPUs", text)
		}
		for id := first; id <= last; id++ {
			ids = append(ids, uint32(id))
		}
	}
	return ids, nil
}
