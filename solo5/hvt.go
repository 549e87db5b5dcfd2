package solo5

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// orderVariable is what tells a process that it is an hvt tender, and of whom.
const orderVariable = "FULMAR_HVT"

// An order is what an hvt tender is to do, beside its arguments: the first one
// is the name of its process, the others are the guest's.
type order struct {
	Version  int
	Memory   uint64 // bytes
	Image    int    // descriptor of the sealed image
	KVM      int    // descriptor of /dev/kvm
	Attached map[int]attachment
}

const orderVersion = 1

// PrepareHVT is [PrepareSPT] for the target hvt: the guest is a virtual machine
// on /dev/kvm, which needs a process that looks after it. That is program, an
// executable whose main calls [HVTMain] first: fulmar-hvt, or the calling
// program itself (/proc/self/exe, also when the file has been replaced since).
// It stays the caller's.
//
// Like one of the target spt the process keeps nothing of its parent, also no
// right of its user, before the first instruction of program: the executable
// that runs is the same trampoline, whose last system call starts program. It
// runs on when its parent ends, has the guest's exit status and ends at once by
// any signal that is to end it. Beside the guest's memory it takes a few MB.
func PrepareHVT(g Guest, program *os.File) (*Tender, error) {
	return prepare(g, HVT, func(t *Tender) error {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("run a virtual machine: %w", err)
		}
		t.made = append(t.made, kvm)
		t.compile, t.program, t.kvm = plan.hvt, program, kvm
		return nil
	})
}

// hvt returns the executable that becomes the tender of a guest of the target hvt.
func (p plan) hvt() ([]byte, error) {
	what, err := json.Marshal(order{
		Version: orderVersion, Memory: p.memory,
		Image: p.fds.image, KVM: p.fds.kvm, Attached: p.attached,
	})
	if err != nil {
		return nil, fmt.Errorf("write the order of the tender: %w", err)
	}
	t := &trampoline{name: "fulmar-hvt"}
	p.waitAtGate(t)
	p.dropRights(t)
	closeAllBut(t, append(p.descriptors(), unix.Stdout, unix.Stderr, p.fds.image, p.fds.kvm, p.fds.program))
	t.call(call{
		nr: sysFcntl, args: [6]uint64{uint64(p.fds.program), unix.F_SETFD, unix.FD_CLOEXEC},
		or: "find the tender",
	})
	// One processor is all that the runtime of Go needs for this. Told so, it
	// does not look for the limits of the control group, now and from time to time.
	env := []string{orderVariable + "=" + string(what), "GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}
	t.call(call{
		nr: sysExecveat, args: [6]uint64{uint64(p.fds.program), t.text(""), t.list(p.args), t.list(env), unix.AT_EMPTY_PATH},
		or: "start the tender",
	})
	return t.file()
}

// text adds a string as system calls want it.
func (t *trampoline) text(s string) uint64 { return t.put(append([]byte(s), 0)) }

// list adds a list of strings as execve wants it.
func (t *trampoline) list(texts []string) uint64 {
	var pointers []byte
	for _, s := range texts {
		pointers = binary.LittleEndian.AppendUint64(pointers, t.text(s))
	}
	return t.put(binary.LittleEndian.AppendUint64(pointers, 0))
}
