package solo5_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

const nobody = 65534

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func prepare(t testing.TB, g solo5.Guest) *solo5.Tender {
	t.Helper()
	tender, err := solo5.PrepareSPT(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tender.Close() })
	return tender
}

// asNobody makes the command one of an unprivileged user; that takes root.
func asNobody(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can change the user of a child")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// started starts the command and returns its console, from which "up" was read.
func started(t testing.TB, cmd *exec.Cmd, up string) *bufio.Reader {
	t.Helper()
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	r := bufio.NewReader(console)
	if up != "" {
		if line, err := r.ReadString('\n'); line != up+"\n" {
			t.Fatalf("the console said %q (%v) instead of %q", line, err, up)
		}
	}
	return r
}

func TestGuests(t *testing.T) {
	image := solo5test.Build(t, 0)
	killed := func(s syscall.Signal) string { return "signal: " + s.String() }
	tests := map[string]struct {
		args   []string
		output string
		end    string
	}{
		"a guest that prints and exits with 0":                   {[]string{"hello"}, "hello\n", "exit status 0"},
		"a guest that exits with a status of its own":            {[]string{"hello", "42"}, "hello\n", "exit status 42"},
		"a guest that gives up":                                  {[]string{"hello", "255"}, "hello\n", "exit status 255"},
		"arguments are joined by single spaces":                  {[]string{"say", "a  b", "", "--c=d"}, "a  b  --c=d", "exit status 0"},
		"a guest without arguments has an empty command line":    {nil, "", "exit status 100"},
		"the longest command line":                               {[]string{"say", strings.Repeat("x", 8187)}, strings.Repeat("x", 8187), "exit status 0"},
		"clocks and the base of thread-local storage can be had": {[]string{"clocks"}, "", "exit status 0"},
		"a timer that ends":                                      {[]string{"sleep", "0"}, "up\n", "exit status 0"},
	}
	for _, how := range []string{
		"getpid", "mmap", "write-stderr", "write-high", "read-stdin", "read-console", "clock", "set-gs", "x32", "int80",
	} {
		tests["no system call but a few: "+how] = struct {
			args   []string
			output string
			end    string
		}{[]string{"misbehave", how}, "", killed(syscall.SIGSYS)}
	}
	for _, how := range []string{
		"write-text", "write-rodata", "run-data", "run-stack", "read-zero", "read-below", "read-behind", "write-trampoline",
	} {
		tests["memory as the image declares it: "+how] = struct {
			args   []string
			output string
			end    string
		}{[]string{"misbehave", how}, "", killed(syscall.SIGSEGV)}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tender := prepare(t, solo5.Guest{Image: open(t, image), Memory: 2, Args: tt.args})
			cmd, err := tender.Command()
			if err != nil {
				t.Fatal(err)
			}
			var stderr strings.Builder
			cmd.Stderr = &stderr
			output, err := cmd.Output()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.output, string(output)); diff != "" {
				t.Errorf("console (-want +got):\n%s", diff)
			}
			if got := cmd.ProcessState.String(); !strings.HasPrefix(got, tt.end) {
				t.Errorf("ended with %q instead of %q", got, tt.end)
			}
			if stderr.Len() > 0 {
				t.Errorf("standard error: %s", stderr.String())
			}
		})
	}
}

// askew returns an image whose text lies where its pages cannot be mapped from.
func askew(t *testing.T, path string) string {
	t.Helper()
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const progOffset, progFileSize = 64 + 8, 64 + 32
	from := binary.LittleEndian.Uint64(image[progOffset:])
	size := binary.LittleEndian.Uint64(image[progFileSize:])
	text := bytes.Clone(image[from:][:size])
	clear(image[from:][:size])
	image = append(image, 0)
	binary.LittleEndian.PutUint64(image[progOffset:], uint64(len(image)))
	moved := filepath.Join(t.TempDir(), "askew")
	if err := os.WriteFile(moved, append(image, text...), 0o600); err != nil {
		t.Fatal(err)
	}
	return moved
}

func TestSegmentThatLiesAskewInTheFile(t *testing.T) {
	path := askew(t, solo5test.Build(t, 0))
	for args, want := range map[string]string{
		"hello 5":              "exit status 5",
		"misbehave write-text": "signal: segmentation fault",
		"misbehave run-data":   "signal: segmentation fault",
	} {
		tender := prepare(t, solo5.Guest{Image: open(t, path), Memory: 2, Args: strings.Fields(args)})
		cmd, err := tender.Command()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Run(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v instead of %s", args, err, want)
		}
	}
}

func TestGuestSeesItsBootInformation(t *testing.T) {
	tender := prepare(t, solo5.Guest{Image: open(t, solo5test.Build(t, 0)), Memory: 16, Args: []string{"boot"}})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var bssEnd, kernelEnd uint64
	for line := range strings.Lines(string(output)) {
		fmt.Sscanf(line, "kernel_end=%d", &kernelEnd)
		fmt.Sscanf(line, "bss_end=%d", &bssEnd)
	}
	if kernelEnd%4096 != 0 || kernelEnd < bssEnd || kernelEnd-bssEnd >= 4096 {
		t.Errorf("the kernel ends at %#x, its zeroed data at %#x", kernelEnd, bssEnd)
	}
	want := fmt.Sprintf("memory=16777216\nstack_below_end=8\nkernel_end=%d\nbss_end=%d\nbss_sum=0\ninitialized\nentry=0\n=1073741824\n", kernelEnd, bssEnd)
	if diff := cmp.Diff(want, string(output)); diff != "" {
		t.Errorf("boot information (-want +got):\n%s", diff)
	}
}

func TestProcessOfAnotherUserKeepsNothing(t *testing.T) {
	image := solo5test.Build(t, 0)
	// What a careless parent leaves open for every child.
	leak, err := unix.Dup(int(open(t, image).Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(leak) })

	tender := prepare(t, solo5.Guest{Image: open(t, image), Memory: 8, Args: []string{"sleep", "600"}, Name: "web.web.42-and-more"})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, cmd)
	started(t, cmd, "up")
	if err := tender.Close(); err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)

	want := map[string]string{
		"Name": "web.web.42-and-", "Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1", "Threads": "1", "SigBlk": "0000000000000000", "SigCgt": "0000000000000000",
	}
	if diff := cmp.Diff(want, status(t, proc, want)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"1": "pipe", "5": "anon_inode", "6": "anon_inode"}, files(t, proc)); diff != "" {
		t.Errorf("open files (-want +got):\n%s", diff)
	}
	if cwd, err := os.Readlink(proc + "/cwd"); cwd != "/" {
		t.Errorf("its directory is %q (%v)", cwd, err)
	}
	if env, err := os.ReadFile(proc + "/environ"); len(env) > 0 || err != nil {
		t.Errorf("its environment is %q (%v)", env, err)
	}
	if line, _ := os.ReadFile(proc + "/cmdline"); string(line) != "web.web.42-and-more\x00sleep\x00600\x00" {
		t.Errorf("its command line is %q", line)
	}
	checkMaps(t, proc)
}

// status returns the fields of want as the process has them.
func status(t *testing.T, proc string, want map[string]string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if _, ok := want[key]; ok {
			got[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	return got
}

// files returns what kind of file is behind each descriptor.
func files(t *testing.T, proc string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(proc, "fd", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()], _, _ = strings.Cut(link, ":")
	}
	return got
}

// checkMaps looks for memory below the guest and for any that is writable and executable.
func checkMaps(t *testing.T, proc string) {
	t.Helper()
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(strings.TrimSpace(string(maps)), "\n") {
		var start, end uint64
		var prot string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &prot); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(prot, "wx") {
			t.Errorf("writable and executable: %s", line)
		}
		if n == 0 && start != 0x10000 {
			t.Errorf("the lowest memory is %s", line)
		}
	}
}
