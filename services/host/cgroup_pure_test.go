package host

import (
	"strings"
	"testing"
)

func TestCheckParent(t *testing.T) {
	for parent, good := range map[string]bool{
		"fulmar": true, "fulmar/blue": true, "system.slice/fulmar.service/unikernels": true,
		"": false, ".": false, "..": false, "/fulmar": false, "/": false, "a/..": false, "../a": false, "a/": false, "./a": false, "a//b": false,
	} {
		if err := checkParent(parent); (err == nil) != good {
			t.Errorf("%q: %v", parent, err)
		}
	}
}

func TestCheckUIDs(t *testing.T) {
	for base, good := range map[int]bool{
		900000: true, 65536: true, 4294901758: true,
		4294901759: false, 4294967295: false, 1 << 40: false, 65535: false, 65534: false, 1000: false, 0: false, -1: false,
	} {
		if err := checkUIDs(base); (err == nil) != good {
			t.Errorf("%d: %v", base, err)
		}
	}
}

func TestMayBeGroup(t *testing.T) {
	for name, may := range map[string]bool{
		fileName(parse(":web.web.42")): true, fileName(parse("a:b:c")): true, fileName(parse(strings.Repeat("long.label:", 30) + "x")): true,
		"ssh.service": false, "user.slice": false, "init.scope": false, "dbus-:1.2-org.freedesktop.problems@0.service": false,
		"docker-" + strings.Repeat("0a", 32) + ".scope": false, strings.Repeat("0a", 31): false, "sys-devices-virtual": false, "": false,
	} {
		if mayBeGroup(name) != may {
			t.Errorf("%q: want %v", name, may)
		}
	}
}
