package host_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

func TestMain(m *testing.M) {
	hosttest.Main(func() { goleak.VerifyTestMain(m) })
}

func TestUnikernelRunsFromCreateToDestroy(t *testing.T) {
	cfg := config(t)
	br := bridge(t)
	d := start(t, cfg)
	n := name(t, "web:hello")
	image := hosttest.Guest(t, 2)
	ucfg := unikernel(image, 2, "wait")
	ucfg.Bridges[1].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 7}
	d.create(t, n, ucfg)
	d.await(t, n, is("up"))

	list, err := d.Info(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != n || time.Since(list[0].Started) > time.Minute {
		t.Fatalf("info is %+v", list)
	}
	if diff := cmp.Diff([]albatross.InfoBridge{
		{UnikernelDevice: "net0", HostDevice: "br0", MAC: albatross.MAC(n, "net0")},
		{UnikernelDevice: "net1", HostDevice: "br0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}},
	}, list[0].Bridges); diff != "" {
		t.Errorf("bridges of info (-want +got):\n%s", diff)
	}
	for _, tapName := range taps(t) {
		checkTap(t, tapName, br, n, cfg.UIDBase)
	}
	if got := len(taps(t)); got != 2 {
		t.Errorf("%d taps, want 2", got)
	}
	checkPinned(t, "br0")

	if err := d.Destroy(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, cfg) // the reply comes after the fact
	if list, err := d.Info(t.Context(), n); err != nil || len(list) > 0 {
		t.Errorf("info after destroy: %v, %v", list, err)
	}
	lines := d.await(t, n, ended)
	if diff := cmp.Diff([]string{"up", "fulmar: killed by signal SIGTERM"}, lines); diff != "" {
		t.Errorf("console (-want +got):\n%s", diff)
	}
}

// checkTap looks at a tap of the unikernel n.
func checkTap(t *testing.T, tapName string, br *netlink.Bridge, n albatross.Name, uid int) {
	t.Helper()
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	info, err := netlink.LinkGetProtinfo(link)
	if err != nil {
		t.Fatal(err)
	}
	tap, ok := link.(*netlink.Tuntap)
	if !ok || tap.NonPersist != true || int(tap.Owner) != uid || link.Attrs().MasterIndex != br.Index || link.Attrs().Flags&net.FlagUp == 0 ||
		link.Attrs().Alias != n.String() || !info.Hairpin {
		t.Errorf("tap is %+v, hairpin %v", link, info.Hairpin)
	}
}

// checkPinned looks whether the bridge's address is set and does not follow its ports.
func checkPinned(t *testing.T, bridgeName string) {
	t.Helper()
	sys := t.TempDir()
	if err := hosttest.MountSysfs(sys); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hosttest.Unmount(sys) })
	kind, err := os.ReadFile(filepath.Join(sys, "class/net", bridgeName, "addr_assign_type"))
	if err != nil || strings.TrimSpace(string(kind)) != "3" {
		t.Errorf("addr_assign_type of %s is %q (%v), want 3", bridgeName, kind, err)
	}
}

func TestRefusals(t *testing.T) {
	cfg := config(t)
	cfg.MaxImage = 1 << 20
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	plain, netted := hosttest.Guest(t, 0), hosttest.Guest(t, 1)
	running := name(t, ":running")
	d.create(t, running, unikernel(plain, 0, "wait"))

	with := func(cfg albatross.Config, change func(*albatross.Config)) albatross.Config {
		change(&cfg)
		return cfg
	}
	compressed, err := albatross.Compress(make([]byte, 2<<20), 9)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		name string
		cfg  albatross.Config
		want string
	}{
		"a name that runs":             {":running", unikernel(plain, 0), `Unikernel with same name is already running`},
		"a bridge that does not exist": {":x", with(unikernel(netted, 1), func(c *albatross.Config) { c.Bridges[0].Bridge = "br7" }), `interface br7 does not exist`},
		"an interface that is no bridge": {
			":x", with(unikernel(netted, 1), func(c *albatross.Config) { c.Bridges[0].Bridge = "lo" }), `interface lo is not a bridge: fulmar network ls says which network names it; give that one a bridge, or remove the interface and let fulmar up make one`,
		},
		"too few devices": {
			":x", unikernel(netted, 0),
			`specified bridge(s) does not match with the manifest. Devices present in manifest: net "net0"`,
		},
		"too many devices": {
			":x", unikernel(plain, 1),
			`specified bridge(s) does not match with the manifest. Devices present in manifest: `,
		},
		"a device of another name": {
			":x", with(unikernel(netted, 1), func(c *albatross.Config) { c.Bridges[0].Netif = "service" }),
			`specified bridge(s) does not match with the manifest. Devices present in manifest: net "net0"`,
		},
		"a block device": {
			":x", with(unikernel(plain, 0), func(c *albatross.Config) { c.Blocks = []albatross.Block{{Name: "storage"}} }),
			`block device :storage not found`,
		},
		"a target virtio": {":x", unikernel(retarget(plain, 3), 0), `unsupported solo5 target virtio`},
		"no ELF":          {":x", unikernel([]byte("#!/bin/sh"), 0), `error during ELF parsing`},
		"an empty image":  {":x", unikernel(nil, 0), `error during ELF parsing`},
		"too little memory": {
			":x", with(unikernel(plain, 0), func(c *albatross.Config) { c.Memory = 1 }), `memory of 1 MB is too small: the image needs at least 2 MB`,
		},
		"a CPU that is not there": {
			":x", with(unikernel(plain, 0), func(c *albatross.Config) { c.CPUIDs = []int{0, 999} }), `CPUids 999 are not allowed by policy`,
		},
		"no zlib stream": {
			":x", with(unikernel([]byte("garbage"), 0), func(c *albatross.Config) { c.Compressed = true }), `failed to uncompress: Invalid Zlib header`,
		},
		"a zlib stream without an end to it": {
			":x", with(unikernel(compressed, 0), func(c *albatross.Config) { c.Compressed = true }),
			`failed to uncompress: albatross: bad compressed image: more than 1048576 bytes when uncompressed`,
		},
		"bhyve without a disk": {":x", with(unikernel(plain, 0), func(c *albatross.Config) { c.Typ = albatross.BHyve }), `couldn't find initial block device`},
		"bhyve": {
			":x", with(unikernel(plain, 0), func(c *albatross.Config) { c.Typ, c.Blocks = albatross.BHyve, []albatross.Block{{Name: "disk"}} }),
			`unsupported type of unikernel: bhyve`,
		},
		"too long a command line": {":x", unikernel(plain, 0, strings.Repeat("x", 9000)), `the arguments have 9000 bytes, more than the 8191 that a unikernel can get`},
	} {
		t.Run(what, func(t *testing.T) {
			err := d.Create(t.Context(), name(t, c.name), c.cfg)
			var failure *albatross.FailureError
			if !errors.As(err, &failure) || failure.Message != c.want {
				t.Errorf("create: %v, want %s", err, c.want)
			}
		})
	}
	for what, err := range map[string]error{
		"destroy": d.Destroy(t.Context(), name(t, ":nobody")),
		"restart": d.Restart(t.Context(), name(t, ":nobody")),
	} {
		var failure *albatross.FailureError
		if !errors.As(err, &failure) || failure.Message != "destroy: not found" {
			t.Errorf("%s of nobody: %v", what, err)
		}
	}
	if _, err := d.Image(t.Context(), name(t, ":nobody"), albatross.UnikernelGet{}); err == nil || !strings.Contains(err.Error(), "get: no unikernel found") {
		t.Errorf("get of nobody: %v", err)
	}
	for _, level := range []int{0, 9} {
		got, err := d.Image(t.Context(), running, albatross.UnikernelGet{Level: level})
		if err == nil && got.Compressed {
			got.Image, err = albatross.Uncompress(got.Image, 1<<20)
		}
		if err != nil || got.Compressed != (level > 0) || !bytes.Equal(got.Image, plain) {
			t.Errorf("get with level %d: %d bytes, %v", level, len(got.Image), err)
		}
	}
	if err := d.Destroy(t.Context(), running); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, cfg)
}

// retarget is the image for another target.
func retarget(image []byte, target uint32) []byte {
	from := append([]byte("Solo5\x00\x00\x00"), binary.LittleEndian.AppendUint32(nil, 2)...)
	to := append([]byte("Solo5\x00\x00\x00"), binary.LittleEndian.AppendUint32(nil, target)...)
	return bytes.Replace(image, from, to, 1)
}

func TestForceCreateReplacesAndRestartKeepsOrChangesArguments(t *testing.T) {
	cfg := config(t)
	bridge(t)
	d := start(t, cfg).destroyAll(t)
	n := name(t, "a:b:c")
	image := hosttest.Guest(t, 1)
	if err := d.ForceCreate(t.Context(), n, unikernel(image, 1, "args", "one")); err != nil {
		t.Fatal(err)
	}
	d.await(t, n, is("args one"))
	if err := d.ForceCreate(t.Context(), n, unikernel(image, 1, "args", "two")); err != nil {
		t.Fatal(err)
	}
	d.await(t, n, is("args two"))
	if err := d.ForceCreate(t.Context(), n, unikernel(image, 0, "args", "three")); err == nil {
		t.Error("force create with a wrong manifest succeeded")
	}
	if list, err := d.Info(t.Context(), n); err != nil || len(list) != 1 || list[0].Arguments[1] != "two" {
		t.Errorf("after a force create that failed: %+v, %v", list, err)
	}
	args := unikernel(image, 1, "args", "four").Args
	args.Memory = 16
	if err := d.RestartWith(t.Context(), n, args); err != nil {
		t.Fatal(err)
	}
	d.await(t, n, is("args four"))
	if err := d.Restart(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	count := 0
	d.await(t, n, func(s string) bool {
		if s == "args four" {
			count++
		}
		return count == 2
	})
	list, err := d.Info(t.Context(), n)
	if err != nil || len(list) != 1 || list[0].Memory != 16 || list[0].Arguments[1] != "four" {
		t.Errorf("after restarts: %+v, %v", list, err)
	}
	if got := len(taps(t)); got != 1 {
		t.Errorf("%d taps, want 1", got)
	}
}

func TestExitsAreToldOnTheConsole(t *testing.T) {
	d := start(t, config(t))
	image := hosttest.Guest(t, 0)
	for args, want := range map[string]string{
		"exit 0":   "fulmar: exited with status 0",
		"exit 3":   "fulmar: exited with status 3",
		"exit 255": "fulmar: exited with status 255",
		"die":      "fulmar: killed by signal SIGSYS",
	} {
		n := name(t, ":"+strings.ReplaceAll(args, " ", "-"))
		d.create(t, n, unikernel(image, 0, args))
		lines := d.await(t, n, ended)
		if got := lines[len(lines)-1]; got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
		if list, err := d.Info(t.Context(), n); err != nil || len(list) > 0 {
			t.Errorf("%s: info after exit: %v, %v", args, list, err)
		}
	}
}

func TestInfoOfPathsIsRelative(t *testing.T) {
	d := start(t, config(t)).destroyAll(t)
	image := hosttest.Guest(t, 0)
	for _, n := range []string{":root", "foo:net", "foo:sub:x", "foobar:y"} {
		d.create(t, name(t, n), unikernel(image, 0, "wait"))
	}
	for asked, want := range map[string][]string{
		":": {":root", "foo:net", "foo:sub:x", "foobar:y"}, "foo:": {":net", "sub:x"}, "foo:sub:": {":x"}, "foo:net": {"foo:net"}, "none:": nil, ":none": nil,
	} {
		reply := ask(t, d.cfg, albatross.VMMDSocket, albatross.Wire{Header: albatross.Header{Sequence: 7, Name: name(t, asked)}, Payload: albatross.UnikernelInfo{}})
		list, ok := reply.Payload.(albatross.Unikernels)
		if !ok || reply.Sequence != 7 {
			t.Fatalf("info %s: %+v", asked, reply)
		}
		var got []string
		for _, r := range list.List {
			got = append(got, r.Name.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("info %s (-want +got):\n%s", asked, diff)
		}
	}
}
