package main

import (
	"fmt"
	"strconv"
	"strings"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// parsePort reads PORT[:TARGET][/PROTOCOL].
func parsePort(s string) (*fulmarv1.Port, error) {
	numbers, protocol, _ := strings.Cut(s, "/")
	port, target, two := strings.Cut(numbers, ":")
	p := &fulmarv1.Port{Protocol: protocol}
	var err error
	if p.Port, err = number(port); err != nil {
		return nil, fmt.Errorf("port %q: want PORT:TARGET/PROTOCOL, as 8080:80/tcp", s)
	}
	if two {
		if p.Target, err = number(target); err != nil {
			return nil, fmt.Errorf("port %q: want PORT:TARGET/PROTOCOL, as 8080:80/tcp", s)
		}
	}
	return p, nil
}

// parseHealth reads icmp, tcp:PORT, http:PORT/PATH[=STATUS] or dns:PORT/NAME.
func parseHealth(s string) (*fulmarv1.HealthCheck, error) {
	kind, rest, _ := strings.Cut(s, ":")
	port, path, slash := strings.Cut(rest, "/")
	bad := fmt.Errorf("health %q: want icmp, tcp:PORT, http:PORT/PATH[=STATUS] or dns:PORT/NAME", s)
	var n uint32
	if port != "" {
		var err error
		if n, err = number(port); err != nil {
			return nil, bad
		}
	}
	switch {
	case kind == "icmp" && rest == "":
		return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Icmp{Icmp: &fulmarv1.IcmpProbe{}}}, nil
	case kind == "tcp" && !slash:
		return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Tcp{Tcp: &fulmarv1.TcpProbe{Port: n}}}, nil
	case kind == "dns":
		return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Dns{Dns: &fulmarv1.DnsProbe{Port: n, Name: path}}}, nil
	case kind == "http":
		probe := &fulmarv1.HttpProbe{Port: n, Path: "/" + path}
		if i := strings.LastIndexByte(probe.GetPath(), '='); i >= 0 {
			if status, err := number(probe.GetPath()[i+1:]); err == nil && !strings.Contains(probe.GetPath()[:i], "?") {
				probe.Path, probe.Status = probe.GetPath()[:i], status
			}
		}
		return &fulmarv1.HealthCheck{Probe: &fulmarv1.HealthCheck_Http{Http: probe}}, nil
	}
	return nil, bad
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
