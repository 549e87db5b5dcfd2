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
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// asMain in the environment makes the test binary fulmar-spt.
const asMain = "FULMAR_SPT_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// An outcome is all that one sees of a run.
type outcome struct {
	Stdout, Stderr, End string
}

// spt runs fulmar-spt.
func spt(t *testing.T, files []*os.File, args ...string) outcome {
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
	end, _, _ := strings.Cut(cmd.ProcessState.String(), " (core dumped)")
	return outcome{stdout.String(), stderr.String(), end}
}

func TestRuns(t *testing.T) {
	image, wired := solo5test.Build(t, 0), solo5test.Build(t, 1)
	stored := solo5test.BuildSPT(t, solo5test.Features{Blocks: 1})
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, bytes.Repeat([]byte{42}, 2048), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		want outcome
	}{
		"a unikernel's console and status": {[]string{"--mem=2", image, "hello", "42"}, outcome{"hello\n", "", "exit status 42"}},
		"memory that is not named":         {[]string{"--", image, "hello"}, outcome{"hello\n", "", "exit status 0"}},
		"an argument that looks like ours": {[]string{image, "say", "--mem=3", "--"}, outcome{"--mem=3 --", "", "exit status 0"}},
		"a unikernel that breaks out":      {[]string{image, "misbehave", "getpid"}, outcome{"", "", "signal: bad system call"}},
		"a unikernel that reads its input": {[]string{image, "misbehave", "read-stdin"}, outcome{"", "", "signal: bad system call"}},
		"a unikernel that writes to code":  {[]string{image, "misbehave", "write-text"}, outcome{"", "", "signal: segmentation fault"}},
		"the version":                      {[]string{"--version"}, outcome{"", "fulmar-spt tender\nABI version 2\n", "exit status 0"}},
		"too little memory": {
			[]string{"--mem=1", image},
			outcome{"", "fulmar-spt: " + image + ": memory of 1 MB is too small: the image needs at least 2 MB\n", "exit status 1"},
		},
		"no image":      {[]string{text}, outcome{"", "fulmar-spt: " + text + ": not a Solo5 image: no ELF header\n", "exit status 1"}},
		"no file":       {[]string{text + "s"}, outcome{"", "fulmar-spt: open " + text + "s: no such file or directory\n", "exit status 1"}},
		"a directory":   {[]string{filepath.Dir(text)}, outcome{"", "fulmar-spt: " + filepath.Dir(text) + ": not a Solo5 image: it is no regular file\n", "exit status 1"}},
		"no such tap":   {[]string{"--net:net0=none0", wired}, outcome{"", "fulmar-spt: look for interface \"none0\": no such device\n", "exit status 1"}},
		"not connected": {[]string{wired}, outcome{"", "fulmar-spt: " + wired + ": the image declares the network device \"net0\", and it is not attached\n", "exit status 1"}},
		"a block device": {
			[]string{"--block-sector-size:disk0=1024", "--block:disk0=" + disk, stored, "disk", "read", "1024", "1024"},
			outcome{"result=1024\nbyte=42\n", "", "exit status 0"},
		},
		"behind a block device": {
			[]string{"--block:disk0=" + disk, stored, "disk", "write", "2048", "512", "1"},
			outcome{"", "", "signal: bad system call"},
		},
		"no block device": {[]string{stored}, outcome{"", "fulmar-spt: " + stored + ": the image declares the block device \"disk0\", and it is not attached\n", "exit status 1"}},
		"no open file":    {[]string{"--net:net0=@77", wired}, outcome{"", "fulmar-spt: descriptor 77 is no tap: bad file descriptor\n", "exit status 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, spt(t, nil, tt.args...)); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTaps(t *testing.T) {
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
	image := solo5test.Build(t, 1)
	check := func(how string, o outcome) {
		t.Helper()
		_, got, _ := strings.Cut(o.Stdout, "net0=2\n")
		want := "mac=2\nmac=0\nmac=0\nmac=0\nmac=0\nmac=9\nmtu=1400\nattached=1\n"
		if diff := cmp.Diff(outcome{want, "", "exit status 0"}, outcome{got, o.Stderr, o.End}); diff != "" {
			t.Errorf("a tap %s (-want +got):\n%s", how, diff)
		}
	}
	check("by name", spt(t, nil, "--net:net0=tap0", "--net-mac:net0=02:00:00:00:00:09", image, "boot"))

	f, _, err := solo5.OpenTap("tap0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check("by descriptor", spt(t, []*os.File{f}, "--net:net0=@3", "--net-mac:net0=02:00:00:00:00:09", image, "boot"))
}

func TestProcessKeepsOnlyWhatItNeeds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	leak, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	cmd := exec.Command(exe, "--mem=2", solo5test.Build(t, 0), "sleep", "600")
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
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 || entries[0].Name() != "1" {
		t.Errorf("console, epoll set and timer should be open, and not %v", entries)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		want, ok := map[string]string{"CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapInh": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}[key]
		if os.Getuid() == 0 && key == "Groups" {
			want, ok = "", true
		}
		if value = strings.TrimSpace(value); ok && value != want {
			t.Errorf("%s is %q instead of %q", key, value, want)
		}
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", cmd.Process.Pid)); len(env) > 0 || err != nil {
		t.Errorf("its environment is %q (%v)", env, err)
	}
}
