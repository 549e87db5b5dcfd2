package solo5

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestTrampolineIsItsSource(t *testing.T) {
	dir := t.TempDir()
	object, text := filepath.Join(dir, "trampoline.o"), filepath.Join(dir, "trampoline.bin")
	for _, c := range []*exec.Cmd{
		exec.Command("gcc", "-c", "-o", object, "testdata/trampoline.S"),
		exec.Command("objcopy", "-O", "binary", "-j", ".text", object, text),
	} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	want, err := os.ReadFile(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, []byte(trampolineText)); diff != "" {
		t.Errorf("code (-assembled +in Go):\n%s", diff)
	}
}

func TestTrampolineIsAnExecutableOfOneSegment(t *testing.T) {
	tr := trampoline{name: "test"}
	tr.put([]byte("odd"))
	tr.jump(1, 2, 3)
	b, err := tr.file()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Entry != trampolineBase+trampolineCode || len(f.Progs) != 2 {
		t.Errorf("%+v", f.FileHeader)
	}
	if p := f.Progs[0]; p.Flags != elf.PF_R|elf.PF_X || p.Filesz != uint64(len(b)) || p.Vaddr != trampolineBase {
		t.Errorf("%+v", p.ProgHeader)
	}
	if p := f.Progs[1]; p.Type != elf.PT_GNU_STACK || p.Flags != elf.PF_R|elf.PF_W {
		t.Errorf("%+v", p.ProgHeader)
	}
}

func TestTrampolineIsBounded(t *testing.T) {
	tr := trampoline{name: "test"}
	for range trampolineData / (8 * callWords) {
		tr.call(call{})
	}
	if _, err := tr.file(); !errors.Is(err, errTrampolineFull) {
		t.Errorf("got %v", err)
	}

	// The most that Read lets through fits.
	full := plan{image: &Image{Target: SPT, Entry: guestMinBase}, memory: 2 << 30, args: []string{"full"}, attached: map[int]attachment{}, fds: descriptors{trampoline: 3, image: 4, epoll: 5, timer: 6, gate: 1000}}
	for n := range maxProgHeaders {
		full.image.Segments = append(full.image.Segments, Segment{Addr: guestMinBase + uint64(n)*pageSize, MemSize: pageSize, FileSize: pageSize})
	}
	for n := range maxEntries - 1 {
		full.image.Devices = append(full.image.Devices, Device{Name: strings.Repeat("n", 67), Type: NetDevice, Handle: n + 1})
		full.attached[n+1] = attachment{Device: NetDevice, FD: 2*n + 10}
	}
	if b, err := full.spt(); err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestGaps(t *testing.T) {
	const last = 1<<32 - 1
	tests := map[string]struct {
		keep []int
		want [][2]uint64
	}{
		"neighbours":                 {[]int{1, 2, 3}, [][2]uint64{{0, 0}, {4, last}}},
		"in any order":               {[]int{9, 1, 5}, [][2]uint64{{0, 0}, {2, 4}, {6, 8}, {10, last}}},
		"from the first":             {[]int{0, 1}, [][2]uint64{{2, last}}},
		"with a descriptor repeated": {[]int{1, 4, 4}, [][2]uint64{{0, 0}, {2, 3}, {5, last}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, gaps(tt.keep)); diff != "" {
				t.Errorf("gaps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
		err  string
	}{
		"nothing":          {nil, "", ""},
		"spaces are kept":  {[]string{"a b", "", "c"}, "a b  c", ""},
		"as long as may":   {[]string{strings.Repeat("x", 8190), ""}, strings.Repeat("x", 8190) + " ", ""},
		"a byte too long":  {[]string{strings.Repeat("x", 8190), "y"}, "", "the arguments have 8192 bytes, more than the 8191 that a unikernel can get"},
		"a NUL byte in it": {[]string{"a\x00b"}, "", "an argument contains a NUL byte"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := commandLine(tt.args)
			if got != tt.want {
				t.Errorf("%q instead of %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("error %v instead of %q", err, tt.err)
			}
		})
	}
}

// judge runs a filter as the kernel does; the data are the words of a struct
// seccomp_data, low half first.
func judge(t *testing.T, program []unix.SockFilter, data [16]uint32) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		switch i := program[pc]; i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = data[i.K/4]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if a == i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			if a > i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			if a&i.K != 0 {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d: %+v", pc, i)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFilterAllowsNothingElse(t *testing.T) {
	p := plan{fds: descriptors{epoll: 5, timer: 6}, attached: map[int]attachment{
		1: {Device: NetDevice, FD: 7}, 2: {Device: NetDevice, FD: 300},
	}}
	program := filter(p.rules(), kill)
	type attempt struct {
		nr  uint32
		arg uint64
	}
	allowed := map[attempt]bool{
		{sysWrite, 1}: true, {sysWrite, 7}: true, {sysWrite, 300}: true,
		{sysRead, 7}: true, {sysRead, 300}: true,
		{sysEpollPwait, 5}: true, {sysTimerfdSettime, 6}: true,
		{sysClockGettime, 0}: true, {sysClockGettime, 1}: true,
		{sysArchPrctl, archSetFS}: true,
	}
	values := []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 300, 44, archSetFS, 0x1001, 1 << 32, 1<<32 | 1, 1<<32 | 7, 1<<63 | 5, ^uint64(0)}
	for _, base := range []uint32{0, 1 << 30, 1 << 31} {
		for n := range uint32(1024) {
			for _, v := range values {
				nr := base | n
				data := [16]uint32{nr, unix.AUDIT_ARCH_X86_64}
				data[4], data[5] = uint32(v), uint32(v>>32)
				want := uint32(unix.SECCOMP_RET_KILL_PROCESS)
				if allowed[attempt{nr, v}] || nr == sysExitGroup {
					want = unix.SECCOMP_RET_ALLOW
				}
				if got := judge(t, program, data); got != want {
					t.Errorf("system call %#x of %#x: %#x instead of %#x", nr, v, got, want)
				}
				data[1] = unix.AUDIT_ARCH_I386
				if got := judge(t, program, data); got != unix.SECCOMP_RET_KILL_PROCESS {
					t.Errorf("32-bit system call %#x: %#x", nr, got)
				}
			}
		}
	}
}
