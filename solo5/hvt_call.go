package solo5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A hypercall is what a guest of the target hvt asks of its tender. Its values
// are those of Solo5's hvt_abi.h.
type hypercall uint16

const (
	callWalltime hypercall = iota + 1
	callPuts
	callPoll
	callBlockWrite
	callBlockRead
	callNetWrite
	callNetRead
	callHalt
)

// String returns the name that Solo5 gives the hypercall.
func (c hypercall) String() string {
	return [...]string{"reserved", "walltime", "puts", "poll", "block_write", "block_read", "net_write", "net_read", "halt"}[c]
}

// Results of a hypercall (Solo5's solo5.h).
const (
	resultOK          = 0
	resultAgain       = 1
	resultInvalid     = 2
	resultUnspecified = 3
)

// Sizes of the arguments, and offsets in them.
const (
	walltimeSize = 8

	putsSize = 16
	putsLen  = 8

	pollSize     = 20
	pollReadySet = 8
	pollResult   = 16

	netSize   = 28
	netData   = 8
	netLen    = 16
	netResult = 24

	blockSize   = 36
	blockOffset = 8
	blockData   = 16
	blockLen    = 24
	blockResult = 32

	haltSize   = 12
	haltStatus = 8
	cookieSize = 512
)

// An accessError says that a guest passed an address that is none of its own.
type accessError struct {
	call       hypercall
	addr, size uint64
}

func (e *accessError) Error() string {
	return fmt.Sprintf("the unikernel gave %s an address that is not its memory: %d bytes at %#x", e.call, e.size, e.addr)
}

func u64(b []byte, at int) uint64       { return binary.LittleEndian.Uint64(b[at:]) }
func putU64(b []byte, at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }
func putU32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }

// serve does what the guest asks for, with the argument at the address arg. An
// error ends the guest; what a guest can recover from is a result in its argument.
// It allocates nothing unless there is an error.
func (m *machine) serve(call hypercall, arg uint64) error {
	switch call {
	case callWalltime:
		return m.walltime(arg)
	case callPuts:
		return m.puts(arg)
	case callPoll:
		return m.poll(arg)
	case callBlockWrite, callBlockRead:
		return m.block(call, arg)
	case callNetWrite:
		return m.netWrite(arg)
	default:
		return m.netRead(arg)
	}
}

func (m *machine) walltime(arg uint64) error {
	a, ok := m.memory.write(arg, walltimeSize)
	if !ok {
		return &accessError{callWalltime, arg, walltimeSize}
	}
	putU64(a, 0, uint64(time.Now().UnixNano()))
	return nil
}

// puts writes to the console. Text that nobody takes is lost: a service does
// not stop because of it.
func (m *machine) puts(arg uint64) error {
	a, ok := m.memory.read(arg, putsSize)
	if !ok {
		return &accessError{callPuts, arg, putsSize}
	}
	text, ok := m.memory.read(u64(a, 0), u64(a, putsLen))
	if !ok {
		return &accessError{callPuts, u64(a, 0), u64(a, putsLen)}
	}
	for len(text) > 0 {
		n, err := unix.Write(unix.Stdout, text)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil
		}
		text = text[n:]
	}
	return nil
}

func (m *machine) poll(arg uint64) error {
	a, ok := m.memory.write(arg, pollSize)
	if !ok {
		return &accessError{callPoll, arg, pollSize}
	}
	ready, n, err := m.waiting.wait(u64(a, 0))
	if err != nil {
		return fmt.Errorf("wait for packets: %w", err)
	}
	putU64(a, pollReadySet, ready)
	putU32(a, pollResult, uint32(n))
	return nil
}

// device returns the device that the guest calls by its handle.
func (m *machine) device(handle uint64, kind DeviceType) (*attachment, bool) {
	if handle >= maxEntries || m.devices[handle].Device != kind {
		return nil, false
	}
	return &m.devices[handle], true
}

// netWrite sends a frame. One that the kernel does not take is lost, as any can be.
func (m *machine) netWrite(arg uint64) error {
	a, ok := m.memory.write(arg, netSize)
	if !ok {
		return &accessError{callNetWrite, arg, netSize}
	}
	d, ok := m.device(u64(a, 0), NetDevice)
	if !ok {
		putU32(a, netResult, resultInvalid)
		return nil
	}
	frame, ok := m.memory.read(u64(a, netData), u64(a, netLen))
	if !ok {
		return &accessError{callNetWrite, u64(a, netData), u64(a, netLen)}
	}
	result := uint32(resultOK)
	if n, err := retry(unix.Write, d.FD, frame); err != nil || n != len(frame) {
		result = resultUnspecified
	}
	putU32(a, netResult, result)
	return nil
}

// netRead receives a frame. It is an error if there can never be one again: the
// guest would be told for ever that there is one.
func (m *machine) netRead(arg uint64) error {
	a, ok := m.memory.write(arg, netSize)
	if !ok {
		return &accessError{callNetRead, arg, netSize}
	}
	d, ok := m.device(u64(a, 0), NetDevice)
	if !ok {
		putU32(a, netResult, resultInvalid)
		return nil
	}
	frame, ok := m.memory.write(u64(a, netData), u64(a, netLen))
	if !ok {
		return &accessError{callNetRead, u64(a, netData), u64(a, netLen)}
	}
	switch n, err := retry(unix.Read, d.FD, frame); {
	case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
		putU32(a, netResult, resultAgain)
	case err != nil:
		return fmt.Errorf("receive from the network device of handle %d: %w", u64(a, 0), err)
	default:
		putU64(a, netLen, uint64(n))
		putU32(a, netResult, resultOK)
	}
	return nil
}

// retry makes a transfer again if a signal came between.
func retry(transfer func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := transfer(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// block reads or writes whole sectors that are there.
func (m *machine) block(call hypercall, arg uint64) error {
	a, ok := m.memory.write(arg, blockSize)
	if !ok {
		return &accessError{call, arg, blockSize}
	}
	d, ok := m.device(u64(a, 0), BlockDevice)
	offset, size := u64(a, blockOffset), u64(a, blockLen)
	if !ok || !d.holds(offset, size) {
		putU32(a, blockResult, resultInvalid)
		return nil
	}
	access, transfer := m.memory.write, unix.Pread
	if call == callBlockWrite {
		access, transfer = m.memory.read, unix.Pwrite
	}
	data, ok := access(u64(a, blockData), size)
	if !ok {
		return &accessError{call, u64(a, blockData), size}
	}
	putU32(a, blockResult, transferAll(transfer, d.FD, data, int64(offset)))
	return nil
}

// holds reports whether whole sectors, and all of them there, are at the offset.
func (a *attachment) holds(offset, size uint64) bool {
	sector := uint64(a.Sector)
	return offset%sector == 0 && size%sector == 0 && offset < a.Capacity && size <= a.Capacity-offset
}

// transferAll reads or writes all bytes; a full disk or a broken one is a
// result that the guest is told.
func transferAll(transfer func(int, []byte, int64) (int, error), fd int, b []byte, offset int64) uint32 {
	for len(b) > 0 {
		switch n, err := transfer(fd, b, offset); {
		case errors.Is(err, unix.EINTR):
		case err != nil, n == 0:
			return resultUnspecified
		default:
			b, offset = b[n:], offset+int64(n)
		}
	}
	return resultOK
}

// halt returns the status with which the guest ends. It may show where its
// last registers are, which nobody looks at here.
func (m *machine) halt(arg uint64) (int, error) {
	a, ok := m.memory.read(arg, haltSize)
	if !ok {
		return 0, &accessError{callHalt, arg, haltSize}
	}
	if cookie := u64(a, 0); cookie != 0 {
		if _, ok := m.memory.read(cookie, cookieSize); !ok {
			return 0, &accessError{callHalt, cookie, cookieSize}
		}
	}
	return int(a[haltStatus]), nil // a process has no more of it
}
