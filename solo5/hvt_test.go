package solo5_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

// needKVM skips the test where there is no virtual machine.
func needKVM(t testing.TB) {
	t.Helper()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no virtual machines here:", err)
	}
	kvm.Close()
}

func prepareHVT(t testing.TB, g solo5.Guest) *solo5.Tender {
	t.Helper()
	needKVM(t)
	return prepareHVTWith(t, g, tender)
}

func prepareHVTWith(t testing.TB, g solo5.Guest, program string) *solo5.Tender {
	t.Helper()
	prepared, err := solo5.PrepareHVT(g, open(t, program))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prepared.Close() })
	return prepared
}

// ran runs a guest and returns all that one sees of it. What follows the first
// line on standard error, and where in its code the guest was, is left out.
func ran(t testing.TB, tender *solo5.Tender) (console, complaint, end string) {
	t.Helper()
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
	complaint, rest, _ := strings.Cut(stderr.String(), " (its instruction at 0x")
	if strings.Count(stderr.String(), "\n") > 1 || rest != "" && !strings.HasSuffix(rest, ")\n") {
		t.Errorf("more than a line: %q", stderr.String())
	}
	return string(output), complaint, cmd.ProcessState.String()
}

func TestHVTGuests(t *testing.T) {
	needKVM(t)
	image := solo5test.BuildHVT(t, solo5test.Features{})
	type outcome struct{ Console, Complaint, End string }
	refused := func(call, what string) outcome {
		return outcome{"", "fulmar-hvt: the unikernel gave " + call + " an address that is not its memory: " + what, "exit status 1"}
	}
	const crashed = "fulmar-hvt: the unikernel crashed: an exception that it does not handle"
	fine := outcome{"byte=0\n", "", "exit status 0"}
	tests := map[string]struct {
		args string
		want outcome
	}{
		"a guest that prints and exits with 0":                {"hello", outcome{"hello\n", "", "exit status 0"}},
		"a guest that exits with a status of its own":         {"hello 42", outcome{"hello\n", "", "exit status 42"}},
		"a guest that gives up":                               {"hello 255", outcome{"hello\n", "", "exit status 255"}},
		"arguments are handed over":                           {"say a  b  --c=d", outcome{"a  b  --c=d", "", "exit status 0"}},
		"the longest command line":                            {"say " + strings.Repeat("x", 8187), outcome{strings.Repeat("x", 8187), "", "exit status 0"}},
		"a guest without arguments has an empty command line": {"", outcome{"", "", "exit status 100"}},

		"walltime into the last bytes of memory":   {"call 1 $4088", fine},
		"walltime over the end of memory":          {"call 1 $4089", refused("walltime", "8 bytes at 0x3ffff9")},
		"walltime behind memory":                   {"call 1 @4194304", refused("walltime", "8 bytes at 0x400000")},
		"walltime as far as an address goes":       {"call 1 @4294967295", refused("walltime", "8 bytes at 0xffffffff")},
		"walltime into the page tables":            {"call 1 @8192", refused("walltime", "8 bytes at 0x2000")},
		"walltime into the boot information":       {"call 1 @65536", refused("walltime", "8 bytes at 0x10000")},
		"walltime into code":                       {"call 1 @1048576", refused("walltime", "8 bytes at 0x100000")},
		"walltime to nowhere":                      {"call 1 @0", refused("walltime", "8 bytes at 0x0")},
		"puts of an argument behind memory":        {"call 2 @4194304", refused("puts", "16 bytes at 0x400000")},
		"puts of text over the end of memory":      {"call 2 e4090 7", refused("puts", "7 bytes at 0x3ffffa")},
		"puts of text that wraps around":           {"call 2 18446744073709551615 2", refused("puts", "2 bytes at 0xffffffffffffffff")},
		"puts of more than there is":               {"call 2 65536 18446744073709551615", refused("puts", "18446744073709551615 bytes at 0x10000")},
		"puts of the page tables":                  {"call 2 8192 8", refused("puts", "8 bytes at 0x2000")},
		"puts of nothing at nowhere":               {"call 2 0 0", fine},
		"puts of the last byte":                    {"call 2 e4095 1", outcome{"\x00byte=0\n", "", "exit status 0"}},
		"poll with an argument over the end":       {"call 3 $4080", refused("poll", "20 bytes at 0x3ffff0")},
		"poll with an argument in code":            {"call 3 @1048576", refused("poll", "20 bytes at 0x100000")},
		"block_write with an argument in code":     {"call 4 @1048576", refused("block_write", "36 bytes at 0x100000")},
		"block_read with an argument over the end": {"call 5 $4064", refused("block_read", "36 bytes at 0x3fffe0")},
		"net_write with an argument over the end":  {"call 6 $4070", refused("net_write", "28 bytes at 0x3fffe6")},
		"net_read with an argument in code":        {"call 7 @1048576", refused("net_read", "28 bytes at 0x100000")},
		"halt with an argument over the end":       {"call 8 $4086", refused("halt", "12 bytes at 0x3ffff6")},
		"halt with a cookie":                       {"call 8 e3584 7", outcome{"", "", "exit status 7"}},
		"halt with a cookie over the end":          {"call 8 e3585 7", refused("halt", "512 bytes at 0x3ffe01")},
		"halt with a cookie far away":              {"call 8 18446744073709551615 7", refused("halt", "512 bytes at 0xffffffffffffffff")},

		"a network device that is not there": {"call 7 1 b0 1514 r3", outcome{"ret=2\nbyte=0\n", "", "exit status 0"}},
		"the reserved device":                {"call 7 0 b0 1514 r3", outcome{"ret=2\nbyte=0\n", "", "exit status 0"}},
		"a handle that wraps around":         {"call 6 18446744073709551615 b0 60 r3", outcome{"ret=2\nbyte=0\n", "", "exit status 0"}},
		"a block device that is not there":   {"call 5 1 0 b0 512 r4", outcome{"ret=2\nbyte=0\n", "", "exit status 0"}},

		"code is not written to":             {"misbehave write-text", outcome{"up\n", crashed, "exit status 1"}},
		"constants are not written to":       {"misbehave write-rodata", outcome{"up\n", crashed, "exit status 1"}},
		"boot information is not written to": {"misbehave write-boot", outcome{"up\n", crashed, "exit status 1"}},
		"data are not executed":              {"misbehave run-data", outcome{"up\n", crashed, "exit status 1"}},
		"the stack is not executed":          {"misbehave run-stack", outcome{"up\n", crashed, "exit status 1"}},
		"constants are not executed":         {"misbehave run-rodata", outcome{"up\n", crashed, "exit status 1"}},
		"page 0 is not read":                 {"misbehave read-zero", outcome{"up\n", crashed, "exit status 1"}},
		"page tables are not read":           {"misbehave read-tables", outcome{"up\n", crashed, "exit status 1"}},
		"there is nothing behind memory":     {"misbehave read-behind", outcome{"up\n", crashed, "exit status 1"}},
		"a guest that halts its processor":   {"misbehave hlt", outcome{"up\n", "fulmar-hvt: the unikernel stopped its processor, and nothing can wake it", "exit status 1"}},
		"a port that is read":                {"misbehave in", outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x502, and not as a hypercall", "exit status 1"}},
		"a hypercall of one byte":            {"misbehave out-byte", outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x502, and not as a hypercall", "exit status 1"}},
		"another port":                       {"misbehave port", outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x80, and not as a hypercall", "exit status 1"}},
		"the reserved hypercall":             {"misbehave reserved", outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x500, and not as a hypercall", "exit status 1"}},
		"a ring that was not offered":        {"misbehave kick", outcome{"up\n", "fulmar-hvt: the unikernel used the port 0x600, and not as a hypercall", "exit status 1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got outcome
			got.Console, got.Complaint, got.End = ran(t, prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 4, Args: strings.Split(tt.args, " ")}))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHVTGuestSeesItsBootInformation(t *testing.T) {
	needKVM(t)
	for mb, image := range map[int]string{
		4:  solo5test.BuildHVT(t, solo5test.Features{}),
		5:  solo5test.BuildHVT(t, solo5test.Features{}),             // no multiple of a large page
		64: solo5test.BuildHVT(t, solo5test.Features{Constants: 5}), // with several small ones
	} {
		tender := prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: mb, Args: []string{"boot"}})
		console, complaint, end := ran(t, tender)
		var bssEnd, kernelEnd uint64
		for line := range strings.Lines(console) {
			fmt.Sscanf(line, "kernel_end=%d", &kernelEnd)
			fmt.Sscanf(line, "bss_end=%d", &bssEnd)
		}
		if kernelEnd%4096 != 0 || kernelEnd < bssEnd || kernelEnd-bssEnd >= 4096 {
			t.Errorf("the kernel ends at %#x, its zeroed data at %#x", kernelEnd, bssEnd)
		}
		want := fmt.Sprintf("memory=%d\nstack_below_end=8\nkernel_end=%d\nbss_end=%d\nbss_sum=0\ninitialized\nentry=0\n=1073741824\nfeatures=0\n",
			mb<<20, kernelEnd, bssEnd)
		if mb == 64 {
			want += "constant=77\n"
		}
		if diff := cmp.Diff(want, console); diff != "" || complaint != "" || end != "exit status 0" {
			t.Errorf("%s %s, boot information (-want +got):\n%s", complaint, end, diff)
		}
	}
}

func TestHVTClocks(t *testing.T) {
	needKVM(t)
	image := open(t, solo5test.BuildHVT(t, solo5test.Features{}))
	before := time.Now()
	console, _, _ := ran(t, prepareHVT(t, solo5.Guest{Image: image, Memory: 4, Args: []string{"walltime"}}))
	var nsecs int64
	fmt.Sscanf(console, "nsecs=%d", &nsecs)
	if told := time.Unix(0, nsecs); told.Before(before) || told.After(time.Now()) {
		t.Errorf("the unikernel was told that it is %v, and it is %v", told, time.Now())
	}
	for wait, atLeast := range map[time.Duration]int64{0: 0, 1: 0, 120 * time.Millisecond: 119} {
		console, complaint, end := ran(t, prepareHVT(t, solo5.Guest{Image: image, Memory: 4, Args: []string{"wait", fmt.Sprint(wait.Nanoseconds())}}))
		var ms int64
		if n, err := fmt.Sscanf(console, "up\nms=%d\nready=0\nret=0\n", &ms); n != 1 || err != nil || ms < atLeast || ms > atLeast+1000 || end != "exit status 0" {
			t.Errorf("a wait for %v: %q %s %s", wait, console, complaint, end)
		}
	}
}

// While a guest waits without devices, a second and more, the runtime of the
// tender has time to do what it wants to and must not.
func TestHVTProcessOfAnotherUserKeepsNothing(t *testing.T) {
	image := solo5test.BuildHVT(t, solo5test.Features{Blocks: 1})
	tender := prepareHVT(t, solo5.Guest{
		Image: open(t, image), Memory: 8, Args: []string{"wait", "18446744073709551615"}, Name: "web.web.42-and-more",
		Blocks: []solo5.Block{{Name: "disk0", File: openDisk(t, disk(t, 512))}},
	})
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
		"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1", "SigBlk": "0000000000000000",
	}
	if diff := cmp.Diff(want, status(t, proc, want)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	kinds := map[string]int{}
	for _, kind := range files(t, proc) {
		kinds[strings.TrimRight(kind, "0123456789")]++
	}
	if diff := cmp.Diff(map[string]int{"pipe": 1, "/dev/null": 1, "anon_inode": 3, disk0(t, proc): 1}, kinds); diff != "" {
		t.Errorf("open files (-want +got):\n%s", diff)
	}
	tasks, err := os.ReadDir(proc + "/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks { // the filter is on every thread but the kernel's own
		name, _ := os.ReadFile(proc + "/task/" + task.Name() + "/comm")
		text, err := os.ReadFile(proc + "/task/" + task.Name() + "/status")
		if err != nil || !strings.HasPrefix(string(name), "kvm-") && !bytes.Contains(text, []byte("Seccomp:\t2\n")) {
			t.Errorf("thread %s has no filter: %v\n%s", name, err, text)
		}
	}
}

// disk0 returns what the first descriptor of a file under /tmp is called.
func disk0(t *testing.T, proc string) string {
	t.Helper()
	for _, kind := range files(t, proc) {
		if strings.HasPrefix(kind, os.TempDir()) {
			return kind
		}
	}
	return "no disk"
}

func TestHVTGate(t *testing.T) {
	image := solo5test.BuildHVT(t, solo5test.Features{})
	gated := func(t *testing.T) (*exec.Cmd, *solo5.Gate) {
		cmd, gate := atGate(t, prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 64, Args: []string{"hello", "7"}}))
		asNobody(t, cmd)
		return cmd, gate
	}
	t.Run("an open gate lets the guest run", func(t *testing.T) {
		cmd, gate := gated(t)
		console := started(t, cmd, "")
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)); err != nil || !strings.Contains(exe, "memfd:fulmar-hvt") {
			t.Errorf("at the gate it is %q already (%v)", exe, err)
		}
		if err := gate.Open(); err != nil {
			t.Fatal(err)
		}
		ends(t, cmd, console, "hello\n", 7)
	})
	t.Run("a closed gate ends the process, and the guest never ran", func(t *testing.T) {
		cmd, gate := gated(t)
		endsClosed(t, cmd, gate)
	})
}

func TestHVTGuestEndsBySignal(t *testing.T) {
	image := solo5test.BuildHVT(t, solo5test.Features{})
	for what, args := range map[string][]string{"waits": {"wait", "18446744073709551615"}, "computes": {"misbehave", "spin"}} {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
			tender := prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 4, Args: args})
			cmd, err := tender.Command()
			if err != nil {
				t.Fatal(err)
			}
			var stderr strings.Builder
			cmd.Stderr = &stderr
			started(t, cmd, "up")
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if got := cmd.ProcessState.String(); got != "signal: "+s.String() || stderr.Len() > 0 {
				t.Errorf("a guest that %s ended by %q, %s after %s", what, got, stderr.String(), s)
			}
		}
	}
}

// Behind the first 2 MB the image has page tables of its own.
func TestHVTLargeImage(t *testing.T) {
	image := solo5test.BuildHVT(t, solo5test.Features{Constants: 5})
	for _, how := range []string{"write-constants", "run-constants", "run-data", "run-stack", "write-text"} {
		tender := prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 9, Args: []string{"misbehave", how}})
		if _, complaint, end := ran(t, tender); !strings.HasSuffix(complaint, "crashed: an exception that it does not handle") || end != "exit status 1" {
			t.Errorf("%s: %q and %s", how, complaint, end)
		}
	}
}

// A guest may change its processor's mode and tables. What it does not get past
// is the protection of the host's memory; how KVM tells that depends on the machine.
func TestHVTCodeIsProtectedFromTheProcessorToo(t *testing.T) {
	needKVM(t)
	mapped := solo5test.BuildHVT(t, solo5test.Features{})
	for how, image := range map[string]string{"mapped": mapped, "copied": askew(t, mapped)} {
		tender := prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 4, Args: []string{"misbehave", "write-text-unprotected"}})
		console, complaint, end := ran(t, tender)
		if complaint != "fulmar-hvt: the unikernel wrote to 0x100000, which it must not" &&
			complaint != "fulmar-hvt: the unikernel used memory in a way that it must not" || console != "up\n" || end != "exit status 1" {
			t.Errorf("code that is %s: %q, %q and %s", how, console, complaint, end)
		}
	}
}

func TestHVTMustFitTogether(t *testing.T) {
	needKVM(t)
	hvt, spt := solo5test.BuildHVT(t, solo5test.Features{}), solo5test.Build(t, 0)
	tests := map[string]struct {
		image  string
		memory int
		want   string
	}{
		"an image for spt":  {spt, 8, "the image is for the target spt, not for hvt"},
		"too little memory": {hvt, 3, "memory of 3 MB is too small: the image needs at least 4 MB"},
		"too much memory":   {hvt, 4097, "memory of 4097 MB is too large: a guest can have at most 4096 MB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := solo5.PrepareHVT(solo5.Guest{Image: open(t, tt.image), Memory: tt.memory}, open(t, tender))
			if mismatch := (*solo5.MismatchError)(nil); !errors.As(err, &mismatch) || mismatch.Problem != tt.want {
				t.Errorf("got %v instead of %q", err, tt.want)
			}
		})
	}
	if _, err := solo5.PrepareSPT(solo5.Guest{Image: open(t, hvt), Memory: 8}); err == nil {
		t.Error("an image for hvt was taken for spt")
	}
	t.Run("a tender that is the calling program", func(t *testing.T) {
		prepared := prepareHVTWith(t, solo5.Guest{Image: open(t, hvt), Memory: 4, Args: []string{"wait", "300000000"}}, "/proc/self/exe")
		if console, complaint, end := ran(t, prepared); !strings.HasSuffix(console, "ready=0\nret=0\n") || complaint != "" || end != "exit status 0" {
			t.Errorf("%q, %q and %s", console, complaint, end)
		}
	})
	t.Run("a tender that is no program", func(t *testing.T) {
		tender, err := solo5.PrepareHVT(solo5.Guest{Image: open(t, hvt), Memory: 4}, open(t, "/dev/null"))
		if err != nil {
			t.Fatal(err)
		}
		defer tender.Close()
		if _, complaint, end := ran(t, tender); complaint != "fulmar-hvt: start the tender: errno 013\n" || end != "exit status 1" {
			t.Errorf("%q and %s", complaint, end)
		}
	})
}

func TestHVTLargestMemory(t *testing.T) {
	tender := prepareHVT(t, solo5.Guest{Image: open(t, solo5test.BuildHVT(t, solo5test.Features{})), Memory: 4096, Args: []string{"call", "1", "@4294967288"}})
	if console, complaint, end := ran(t, tender); console != "byte=0\n" || end != "exit status 0" {
		t.Errorf("%q %q %s", console, complaint, end)
	}
}
