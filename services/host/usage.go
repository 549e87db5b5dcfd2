package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"fulmar/albatross"
)

const (
	tick        = 10_000 // microseconds of a clock tick in /proc (USER_HZ)
	blockOfFile = 512    // bytes in the counters of getrusage(2)
)

// procUsage reads what the process of an identity has used so far from /proc. The error is [errNotThere] if it has ended. As albatross has it, the
// sizes are in pages of memory but for VSize, and MaxRSS is too.
func procUsage(id identity, bootTime int64) (u albatross.Rusage, m albatross.Memory, err error) {
	stat, err := statFields(id.PID)
	if err != nil {
		return u, m, err
	}
	if stat[22] != strconv.FormatUint(id.Start, 10) { // the process is another
		return u, m, errNotThere
	}
	dir := filepath.Join("/proc", strconv.Itoa(id.PID))
	status, err1 := procLines(filepath.Join(dir, "status"))
	files, err2 := procLines(filepath.Join(dir, "io"))
	sizes, err3 := os.ReadFile(filepath.Join(dir, "statm"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return u, m, fmt.Errorf("read usage of process %d: %w", id.PID, err)
	}
	pages := strings.Fields(string(sizes))
	if len(pages) < 6 {
		return u, m, fmt.Errorf("read usage of process %d: sizes are %q", id.PID, sizes)
	}
	user, system, start := number(stat[14])*tick, number(stat[15])*tick, int64(id.Start)*tick
	u = albatross.Rusage{
		UTime: timeval(user), STime: timeval(system), MaxRSS: status["VmHWM"] << 10 / int64(os.Getpagesize()),
		MinFlt: number(stat[10]), MajFlt: number(stat[12]), InBlock: files["read_bytes"] / blockOfFile, OutBlock: files["write_bytes"] / blockOfFile,
		NVCSw: status["voluntary_ctxt_switches"], NIvCSw: status["nonvoluntary_ctxt_switches"],
	}
	began := timeval(start)
	began.Sec += bootTime
	m = albatross.Memory{
		VSize: number(stat[23]), RSS: number(pages[1]), TSize: number(pages[3]), DSize: number(pages[5]), SSize: number(pages[5]),
		Runtime: user + system, Start: began,
	}
	return u, m, nil
}

// timeval splits up microseconds.
func timeval(us int64) albatross.Timeval {
	return albatross.Timeval{Sec: us / 1e6, Usec: int(us % 1e6)}
}

// number reads a decimal number; what is none counts as 0.
func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// procLines reads a file with lines such as "VmHWM:   1234 kB". Of lines that begin with no number after the colon there is a 0.
func procLines(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := make(map[string]int64)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if words := strings.Fields(value); len(words) > 0 {
			values[key] = number(words[0])
		}
	}
	return values, nil
}

// bootTime reads when the machine was booted, in seconds since 1970.
func bootTime() (int64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read boot time: %w", err)
	}
	_, after, found := bytes.Cut(text, []byte("\nbtime "))
	line, _, _ := bytes.Cut(after, []byte("\n"))
	if !found {
		return 0, errors.New("read boot time: there is none in /proc/stat")
	}
	return number(string(line)), nil
}

// counters reads the counters of all network interfaces, by their names.
func (b *bridges) counters() (map[string]albatross.Interface, error) {
	links, err := b.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // interfaces came and went meanwhile
		return nil, fmt.Errorf("read counters: %w", err)
	}
	all := make(map[string]albatross.Interface, len(links))
	for _, link := range links {
		a := link.Attrs()
		i := albatross.Interface{Flags: int32(a.RawFlags), MTU: int32(a.MTU)}
		if n := a.Statistics; n != nil {
			i.InputPackets, i.InputErrors, i.InputBytes = int64(n.RxPackets), int64(n.RxErrors), int64(n.RxBytes)
			i.OutputPackets, i.OutputErrors, i.OutputBytes = int64(n.TxPackets), int64(n.TxErrors), int64(n.TxBytes)
			i.InputDropped, i.OutputDropped = int64(n.RxDropped), int64(n.TxDropped)
			i.InputMcast, i.Collisions = int64(n.Multicast), int64(n.Collisions)
		}
		all[a.Name] = i
	}
	return all, nil
}
