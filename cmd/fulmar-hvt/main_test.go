package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// asMain in the environment makes the test binary fulmar-hvt.
const asMain = "FULMAR_HVT_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	solo5.HVTMain() // the tender has another environment
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

func needKVM(t *testing.T) {
	t.Helper()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no virtual machines here:", err)
	}
	kvm.Close()
}

// An outcome is all that one sees of a run.
type outcome struct {
	Stdout, Stderr, End string
}

// hvt runs fulmar-hvt. Where in its code a guest was is left out.
func hvt(t *testing.T, files []*os.File, args ...string) outcome {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asMain+"=1")
	cmd.Stdin = strings.NewReader("not for the guest")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &stdout, &stderr, files
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	complaint, _, _ := strings.Cut(stderr.String(), " (its instruction at 0x")
	return outcome{stdout.String(), complaint, cmd.ProcessState.String()}
}

func TestRuns(t *testing.T) {
	needKVM(t)
	image, wired := solo5test.BuildHVT(t, solo5test.Features{}), solo5test.BuildHVT(t, solo5test.Features{Nets: 1})
	stored, spt := solo5test.BuildHVT(t, solo5test.Features{Blocks: 1}), solo5test.Build(t, 0)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, bytes.Repeat([]byte{42}, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		want outcome
	}{
		"a unikernel's console and status": {[]string{"--mem=4", image, "hello", "42"}, outcome{"hello\n", "", "exit status 42"}},
		"memory that is not named":         {[]string{"--", image, "hello"}, outcome{"hello\n", "", "exit status 0"}},
		"an argument that looks like ours": {[]string{image, "say", "--mem=3", "--"}, outcome{"--mem=3 --", "", "exit status 0"}},
		"a unikernel that breaks out":      {[]string{image, "misbehave", "port"}, outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x80, and not as a hypercall", "exit status 1"}},
		"a unikernel that points wildly":   {[]string{"--mem=4", image, "call", "2", "e4095", "2"}, outcome{"", "fulmar-hvt: the unikernel gave puts an address that is not its memory: 2 bytes at 0x3fffff", "exit status 1"}},
		"the version":                      {[]string{"--version"}, outcome{"", "fulmar-hvt tender\nABI version 2\n", "exit status 0"}},
		"too little memory": {
			[]string{"--mem=3", image},
			outcome{"", "fulmar-hvt: " + image + ": memory of 3 MB is too small: the image needs at least 4 MB\n", "exit status 1"},
		},
		"an image for spt": {[]string{spt}, outcome{"", "fulmar-hvt: " + spt + ": the image is for the target spt, not for hvt\n", "exit status 1"}},
		"no image":         {[]string{disk}, outcome{"", "fulmar-hvt: " + disk + ": not a Solo5 image: no ELF header\n", "exit status 1"}},
		"not connected":    {[]string{wired}, outcome{"", "fulmar-hvt: " + wired + ": the image declares the network device \"net0\", and it is not attached\n", "exit status 1"}},
		"no such tap":      {[]string{"--net:net0=none0", wired}, outcome{"", "fulmar-hvt: look for interface \"none0\": no such device\n", "exit status 1"}},
		"a block device": {
			[]string{"--block-sector-size:disk0=4096", "--block:disk0=" + disk, stored, "call", "5", "1", "4096", "b0", "4096", "r4"},
			outcome{"ret=0\nbyte=42\n", "", "exit status 0"},
		},
		"a block device that is not there": {
			[]string{"--block:disk0=" + disk + "s", stored},
			outcome{"", "fulmar-hvt: attach block device: open " + disk + "s: no such file or directory\n", "exit status 1"},
		},
		"sectors that do not fit": {
			[]string{"--block:disk0=" + disk, "--block-sector-size:disk0=16384", stored},
			outcome{"", "fulmar-hvt: " + stored + ": block device \"disk0\": " + disk + " has 8192 bytes, which are no whole sectors of 16384\n", "exit status 1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, hvt(t, nil, tt.args...)); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTaps(t *testing.T) {
	needKVM(t)
	if os.Getuid() != 0 {
		t.Skip("only root can make a network namespace")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("there is no /dev/net/tun")
	}
	runtime.LockOSThread() // and never unlock: thread and namespace end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI}
	if err := netlink.LinkAdd(tap); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(tap, 1400); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		t.Fatal(err)
	}
	image := solo5test.BuildHVT(t, solo5test.Features{Nets: 1})
	check := func(how string, o outcome) {
		t.Helper()
		_, got, _ := strings.Cut(o.Stdout, "net0=2\n")
		want := "mac=2\nmac=0\nmac=0\nmac=0\nmac=0\nmac=9\nmtu=1400\nattached=1\nfeatures=0\n"
		if diff := cmp.Diff(outcome{want, "", "exit status 0"}, outcome{got, o.Stderr, o.End}); diff != "" {
			t.Errorf("a tap %s (-want +got):\n%s", how, diff)
		}
	}
	check("by name", hvt(t, nil, "--net:net0=tap0", "--net-mac:net0=02:00:00:00:00:09", image, "boot"))

	f, _, err := solo5.OpenTap("tap0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check("by descriptor", hvt(t, []*os.File{f}, "--net:net0=@3", "--net-mac:net0=02:00:00:00:00:09", image, "boot"))
}

func TestProcessKeepsOnlyWhatItNeeds(t *testing.T) {
	needKVM(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	leak, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	cmd := exec.Command(exe, "--mem=4", solo5test.BuildHVT(t, solo5test.Features{}), "wait", "18446744073709551615")
	cmd.Env = append(os.Environ(), asMain+"=1")
	cmd.ExtraFiles = []*os.File{leak, leak, leak}
	if os.Getuid() == 0 { // as from a login
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{0, 4, 27}}}
	}
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	up := make([]byte, 3)
	if _, err := io.ReadFull(console, up); string(up) != "up\n" {
		t.Fatalf("the console said %q (%v)", up, err)
	}
	proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	entries, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(proc, "fd", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(link, ":")
		open = append(open, kind)
	}
	slices.Sort(open)
	if diff := cmp.Diff([]string{"/dev/null", "anon_inode", "anon_inode", "anon_inode", "pipe"}, open); diff != "" {
		t.Errorf("open files (-want +got):\n%s", diff)
	}
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		want, ok := map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapInh": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Name": "guest.hvt"}[key]
		if os.Getuid() == 0 && key == "Groups" {
			want, ok = "", true
		}
		if value = strings.TrimSpace(value); ok && value != want {
			t.Errorf("%s is %q instead of %q", key, value, want)
		}
	}
	if env, err := os.ReadFile(proc + "/environ"); bytes.Contains(env, []byte("PATH=")) || err != nil {
		t.Errorf("its environment is %q (%v)", env, err)
	}
}
