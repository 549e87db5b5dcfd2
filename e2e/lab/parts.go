package lab

import (
	"fmt"
	"path/filepath"
)

// Parts are the processes into which everything that [Lab.Up] runs in one can be split, in an order in which they can
// be started.
func Parts() []string {
	return []string{"bus", "host", "builder", "ipam", "vmm", "monitor", "nat", "gc"}
}

// StartPart starts one of the parts as a process of its own, and gives it when it serves. A part finds again what it
// left when it was stopped or killed.
func (l *Lab) StartPart(part string) (*Process, error) {
	data := filepath.Join(l.Dir, "data")
	switch part {
	case "bus":
		return l.Start("fulmar", "the bus is up", "bus", "--data", data)
	case "host":
		return l.Start("host", "host started", "--run-dir", l.RunDir(), "--state-dir", filepath.Join(data, "host"), "--cgroup", l.Cgroup)
	case "builder":
		return l.Start("builder", serviceStarted, "--file-root", "/")
	case "ipam":
		return l.Start("ipam", serviceStarted)
	case "vmm":
		return l.Start("vmm", serviceStarted, "--host", HostName, "--dir", l.RunDir(), "--cache", filepath.Join(data, "images"))
	case "monitor", "nat", "gc":
		return l.Start(part, serviceStarted, "--host", HostName)
	}
	return nil, fmt.Errorf("there is no part %q", part)
}

// serviceStarted is what every service logs when it is connected.
const serviceStarted = "service started"
