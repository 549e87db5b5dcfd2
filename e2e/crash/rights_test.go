package crash_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"fulmar/albatross"
	"fulmar/e2e/lab"
)

// TestUnitsGiveEnoughRights runs everything with the rights that the systemd units give and no others: nat with
// CAP_NET_ADMIN alone, gc likewise, monitor with CAP_NET_RAW, builder, ipam, vmm and the bus with none, and vmm in the
// group of the host's sockets, which the host has got from outside.
func TestUnitsGiveEnoughRights(t *testing.T) {
	w := newLab(t)
	units := map[string]lab.How{}
	for i, name := range append([]string{"bus", "host"}, services[:]...) {
		u := readUnit(t, name)
		units[name] = lab.How{Prefix: u.prefix(t, firstUser+i), Env: []string{"XTABLES_LOCKFILE=" + w.owned("run-"+name, firstUser+i) + "/xtables.lock"}}
		if name == "nat" && !strings.Contains(u.values["Environment"], "XTABLES_LOCKFILE=/run/"+u.values["RuntimeDirectory"]+"/") {
			t.Errorf("nat's unit has the lock of iptables elsewhere than in its own directory: %v", u.values["Environment"])
		}
	}
	w.owned("data", firstUser)
	w.owned("images", firstUser+2+2) // vmm is the third of the services
	w.add("bus", units["bus"])
	w.connect()
	w.addActivated(units["host"])
	for _, s := range services {
		w.add(s, units[s])
	}
	w.ready()
	for _, s := range services {
		w.unprivileged(s)
	}
	l := w.newLife(t, "web", 8080)
	l.through(nil)
	w.nothingLeft()
	w.nothingDenied()
}

// nothingDenied fails the test if a process complained of something that it may not do: some go on without.
func (w *world) nothingDenied() {
	w.t.Helper()
	for _, m := range w.order {
		p, err := m.running(w.patient(w.t))
		if err != nil {
			w.t.Fatal(err)
		}
		text, err := os.ReadFile(p.Log())
		if err != nil {
			w.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "permit") || strings.Contains(line, "denied") || strings.Contains(line, "not supported") {
				w.t.Errorf("%s complains: %s", m.name, line)
			}
		}
	}
}

// owned makes a directory that belongs to a user, as systemd does.
func (w *world) owned(name string, user int) string {
	w.t.Helper()
	dir := filepath.Join(w.Dir, name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, user, user)); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// addActivated starts the host with sockets that are there before, as the socket units have them.
func (w *world) addActivated(how lab.How) {
	w.t.Helper()
	var names []string
	for _, s := range []string{albatross.VMMDSocket, albatross.ConsoleSocket} {
		path := filepath.Join(w.RunDir(), s)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			w.t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			w.t.Fatal(err)
		}
		f, err := l.File()
		if err = errors.Join(err, os.Chown(path, 0, socketGroup), os.Chmod(path, 0o660)); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _, _ = f.Close(), l.Close() })
		names = append(names, strings.TrimSuffix(filepath.Base(s), ".sock"))
		how.Files = append(how.Files, f)
	}
	how.Env = append(how.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	w.add("host", how)
}

// unprivileged fails the test unless a service has the capabilities of its unit alone, and is not root.
func (w *world) unprivileged(name string) {
	w.t.Helper()
	p, err := w.members[name].running(w.patient(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		w.t.Fatal(err)
	}
	const netAdmin, netRaw = "0000000000001000", "0000000000002000"
	caps := map[string]string{"nat": netAdmin, "gc": netAdmin, "monitor": netRaw}
	want, ok := caps[name]
	if !ok {
		want = "0000000000000000"
	}
	for _, line := range []string{"CapEff:\t" + want, "CapBnd:\t" + want, "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			w.t.Errorf("%s has not %q:\n%s", name, line, text)
		}
	}
	if strings.Contains(string(text), "\nUid:\t0\t") {
		w.t.Errorf("%s is root", name)
	}
}
