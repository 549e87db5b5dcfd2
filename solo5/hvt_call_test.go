package solo5

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fulmar/solo5/internal/kvm"
)

// callMachine is a machine without a processor, whose devices 1 and 2 are a
// wire and a disk; it returns the other end of the wire.
func callMachine(t *testing.T) (*machine, int) {
	t.Helper()
	wire, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(wire[0]); unix.Close(wire[1]); disk.Close() })
	m := &machine{memory: guestMemory{bytes: make([]byte, 2*megabyte), readOnly: []span{{0, guestMinBase}}}}
	m.devices[1] = attachment{Device: NetDevice, FD: wire[0]}
	m.devices[2] = attachment{Device: BlockDevice, FD: int(disk.Fd()), Capacity: 4096, Sector: 512}
	m.waiting = newWaitSet(m.devices[:])
	return m, wire[1]
}

// ask puts words where an argument can be.
func (m *machine) ask(words ...uint64) uint64 {
	const arg = 0x180000
	for n, w := range words {
		binary.LittleEndian.PutUint64(m.memory.bytes[arg+8*n:], w)
	}
	return arg
}

func (m *machine) result(arg uint64, at int) uint32 {
	return binary.LittleEndian.Uint32(m.memory.bytes[arg+uint64(at):])
}

// A guest is not disturbed by its tender's garbage, as there is none.
func TestHypercallsAllocateNothing(t *testing.T) {
	m, wire := callMachine(t)
	const data = 0x190000
	calls := map[string]func() error{
		"walltime":    func() error { return m.serve(callWalltime, m.ask(0)) },
		"puts":        func() error { return m.serve(callPuts, m.ask(0, 0)) },
		"poll":        func() error { return m.serve(callPoll, m.ask(1000, 0, 0)) },
		"block_write": func() error { return m.serve(callBlockWrite, m.ask(2, 512, data, 1024, 0)) },
		"block_read":  func() error { return m.serve(callBlockRead, m.ask(2, 512, data, 1024, 0)) },
		"net_write": func() error {
			err := m.serve(callNetWrite, m.ask(1, data, 60, 0))
			_, rerr := unix.Read(wire, m.memory.bytes[:60])
			return errors.Join(err, rerr)
		},
		"net_read":            func() error { return m.serve(callNetRead, m.ask(1, data, 1514, 0)) },
		"no device":           func() error { return m.serve(callNetRead, m.ask(3, data, 1514, 0)) },
		"a processor's error": func() error { _ = kvm.Run(-1); return nil },
	}
	for name, call := range calls {
		var failed error
		if n := testing.AllocsPerRun(100, func() { failed = errors.Join(failed, call()) }); n > 0 || failed != nil {
			t.Errorf("%s allocates %v times (%v)", name, n, failed)
		}
	}
}

func TestPollTellsWhichDeviceIsReady(t *testing.T) {
	m, wire := callMachine(t)
	second, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(second[1])
	m.devices[63] = attachment{Device: NetDevice, FD: second[0]}
	m.waiting = newWaitSet(m.devices[:])
	poll := func(timeout uint64) (ready uint64, n uint32) {
		t.Helper()
		arg := m.ask(timeout, 99, 99)
		if err := m.serve(callPoll, arg); err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(m.memory.bytes[arg+pollReadySet:]), m.result(arg, pollResult)
	}
	if ready, n := poll(0); ready != 0 || n != 0 {
		t.Errorf("nothing is ready: %#x %d", ready, n)
	}
	if _, err := unix.Write(wire, make([]byte, 60)); err != nil {
		t.Fatal(err)
	}
	const forever = ^uint64(0)
	if ready, n := poll(forever); ready != 1<<1 || n != 1 {
		t.Errorf("device 1 is ready: %#x %d", ready, n)
	}
	unix.Close(second[0])
	if ready, n := poll(forever); ready != 1<<1|1<<63 || n != 2 {
		t.Errorf("device 1 is ready and 63 is broken: %#x %d", ready, n)
	}
	arg := m.ask(1, 0x190000, 1514, 0)
	if err := m.serve(callNetRead, arg); err != nil || m.result(arg, netResult) != resultOK || m.result(arg, netLen) != 60 {
		t.Errorf("read: %v, result %d, %d bytes", err, m.result(arg, netResult), m.result(arg, netLen))
	}
	if err := m.serve(callNetRead, m.ask(63, 0x190000, 1514, 0)); !errors.Is(err, unix.EBADF) {
		t.Errorf("a read of a device that is gone: %v", err)
	}
}

// A signal that comes in a wait neither ends it early nor makes it longer.
func TestPollWaitsOnAfterASignal(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	me, w := unix.Gettid(), newWaitSet(nil)
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				stopped <- sent
				return
			case <-tick.C:
				if unix.Tgkill(unix.Getpid(), me, unix.SIGURG) == nil {
					sent++
				}
			}
		}
	}()
	start := time.Now()
	_, n, err := w.wait(uint64(100 * time.Millisecond))
	took := time.Since(start)
	close(stop)
	if sent := <-stopped; err != nil || n != 0 || took < 100*time.Millisecond || took > 2*time.Second || sent == 0 {
		t.Errorf("waited %v (%v) with %d signals", took, err, sent)
	}
}

func TestRemaining(t *testing.T) {
	for _, tt := range []struct {
		nsecs  uint64
		passed time.Duration
		want   uint64
	}{{10, 3, 7}, {10, 10, 0}, {10, 11, 0}, {0, 0, 0}, {^uint64(0), 1, ^uint64(0) - 1}} {
		if got := remaining(tt.nsecs, tt.passed); got != tt.want {
			t.Errorf("of %d after %d there are %d left instead of %d", tt.nsecs, tt.passed, got, tt.want)
		}
	}
	if ts := timespec(^uint64(0)); ts.Sec < 1<<32 || ts.Nsec < 0 || ts.Nsec >= 1e9 {
		t.Errorf("for ever is %+v", ts)
	}
}

func TestHVTFilter(t *testing.T) {
	m := &machine{vcpu: 4}
	m.devices[1] = attachment{Device: NetDevice, FD: 5}
	m.devices[2] = attachment{Device: BlockDevice, FD: 6, Capacity: 4096, Sector: 512}
	program := filter(m.rules(42), isForbidden)
	tests := map[string]struct {
		nr      uint32
		args    [6]uint64
		allowed bool
	}{
		"run the processor":            {sysIoctl, [6]uint64{4, kvm.RequestRun}, true},
		"look at its registers":        {sysIoctl, [6]uint64{4, kvm.RequestGetRegs}, true},
		"run something else":           {sysIoctl, [6]uint64{5, kvm.RequestRun}, false},
		"set its registers":            {sysIoctl, [6]uint64{4, 0x4090ae82}, false},
		"change the tap":               {sysIoctl, [6]uint64{5, 0x400454ca}, false},
		"receive":                      {sysRead, [6]uint64{5}, true},
		"send":                         {sysWrite, [6]uint64{5}, true},
		"read another file":            {sysRead, [6]uint64{6}, false},
		"read standard input":          {sysRead, [6]uint64{0}, false},
		"read the console":             {sysRead, [6]uint64{1}, false},
		"write to the console":         {sysWrite, [6]uint64{1}, true},
		"complain":                     {sysWrite, [6]uint64{2}, true},
		"append to the disk":           {sysWrite, [6]uint64{6}, false},
		"append a little to the disk":  {sysWrite, [6]uint64{6, 0, 8}, false},
		"wake the runtime":             {sysWrite, [6]uint64{9, 0, 8}, true},
		"write to another file":        {sysWrite, [6]uint64{9, 0, 9}, false},
		"write to the disk":            {sysPwrite64, [6]uint64{6, 0, 512, 3584}, true},
		"write behind the disk":        {sysPwrite64, [6]uint64{6, 0, 512, 4096}, false},
		"read another file at a place": {sysPread64, [6]uint64{5, 0, 512, 0}, false},
		"map memory":                   {sysMmap, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, true},
		"map code":                     {sysMmap, [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, false},
		"make code":                    {sysMprotect, [6]uint64{0, 4096, unix.PROT_EXEC}, false},
		"a thread":                     {sysClone, [6]uint64{unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD}, true},
		"a process":                    {sysClone, [6]uint64{uint64(unix.SIGCHLD)}, false},
		"a process in its memory":      {sysClone, [6]uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, false},
		"a namespace":                  {sysClone, [6]uint64{unix.CLONE_NEWUSER}, false},
		"a signal to itself":           {sysTgkill, [6]uint64{42, 43, uint64(unix.SIGURG)}, true},
		"a signal to another":          {sysTgkill, [6]uint64{41, 41, uint64(unix.SIGKILL)}, false},
		"the name of memory":           {sysPrctl, [6]uint64{unix.PR_SET_VMA}, true},
		"another prctl":                {sysPrctl, [6]uint64{unix.PR_SET_DUMPABLE, 1}, false},
	}
	allowed := map[uint32]bool{}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := judge(t, program, seccompData(tt.nr, tt.args)) == unix.SECCOMP_RET_ALLOW; got != tt.allowed {
				t.Errorf("allowed: %v", got)
			}
		})
		allowed[tt.nr] = true
	}
	for _, r := range runtimeRules(42) {
		allowed[r.nr] = true
	}
	allowed[sysPpoll], allowed[sysExitGroup] = true, true
	for nr := range uint32(1024) {
		if got := judge(t, program, seccompData(nr, [6]uint64{})); got == unix.SECCOMP_RET_ALLOW && !allowed[nr] {
			t.Errorf("system call %d is allowed", nr)
		}
	}
	for _, nr := range []uint32{2, 56, 57, 59, 62, 101, 165, 257, 322, 435} { // open, clone, fork, execve, kill, ptrace, mount, openat, execveat, clone3
		if judge(t, program, seccompData(nr, [6]uint64{^uint64(0)})) == unix.SECCOMP_RET_ALLOW {
			t.Errorf("system call %d is allowed", nr)
		}
	}
}

func seccompData(nr uint32, args [6]uint64) [16]uint32 {
	data := [16]uint32{nr, unix.AUDIT_ARCH_X86_64}
	for n, a := range args {
		data[4+2*n], data[5+2*n] = uint32(a), uint32(a>>32)
	}
	return data
}
