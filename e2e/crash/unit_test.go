package crash_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confineKey is the variable that makes the program of the tests take address families away and run another program.
const confineKey = "FULMAR_CRASH_FAMILIES"

// firstUser is the first of the users that units with DynamicUser run as here.
const firstUser = 61184

// unit is what a systemd unit lets its service have.
type unit struct{ values map[string]string }

// readUnit reads a unit. What stands there several times is joined.
func readUnit(t *testing.T, service string) unit {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "fulmar-"+service+".service"))
	if err != nil {
		t.Fatal(err)
	}
	u := unit{map[string]string{}}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			u.values[key] = strings.TrimSpace(u.values[key] + " " + value)
		}
	}
	return u
}

// prefix is the command line that runs a program with the rights of the unit and no others, as systemd would: its user
// and groups, its capabilities, its address families and its umask.
func (u unit) prefix(t *testing.T, user int) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mask := "0022"
	if m := u.values["UMask"]; m != "" {
		mask = m
	}
	line := []string{"env", confineKey + "=" + u.values["RestrictAddressFamilies"], self, "setpriv"}
	if u.values["DynamicUser"] == "yes" {
		id := strconv.Itoa(user)
		line = append(line, "--reuid="+id, "--regid="+id)
		if u.values["SupplementaryGroups"] == "fulmar" {
			line = append(line, "--groups="+strconv.Itoa(socketGroup))
		} else {
			line = append(line, "--clear-groups")
		}
	}
	if u.values["NoNewPrivileges"] == "yes" {
		line = append(line, "--no-new-privs")
	}
	ambient := capabilities(u.values["AmbientCapabilities"])
	return append(line, "--inh-caps="+ambient, "--ambient-caps="+ambient, "--bounding-set="+capabilities(u.values["CapabilityBoundingSet"]),
		"sh", "-c", "umask "+mask+`; LISTEN_PID=$$ exec "$@"`, "sh")
}

// capabilities are those of a unit as setpriv takes them.
func capabilities(list string) string {
	set := "-all"
	for c := range strings.FieldsSeq(list) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return set
}

// confine runs a program that can make sockets of the named address families only.
func confine(families string, args []string) error {
	known := map[string]uint32{
		"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK, "AF_PACKET": unix.AF_PACKET,
	}
	const load, equal, give = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	var allowed []uint32
	for name := range strings.FieldsSeq(families) {
		family, ok := known[name]
		if !ok {
			return fmt.Errorf("address family %q is not known here", name)
		}
		allowed = append(allowed, family)
	}
	// struct seccomp_data begins with the number of the call; its first argument is at 16.
	rest := uint8(len(allowed) + 2) // instructions from the second one on, but for the last
	filter := []unix.SockFilter{{Code: load, K: 0}, {Code: equal, K: unix.SYS_SOCKET, Jf: rest}, {Code: load, K: 16}}
	for i, family := range allowed {
		filter = append(filter, unix.SockFilter{Code: equal, K: family, Jt: uint8(len(allowed) - i)})
	}
	filter = append(filter,
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("confine: %w", errno)
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return errors.Join(os.Unsetenv(confineKey), syscall.Exec(path, args, os.Environ()))
}
