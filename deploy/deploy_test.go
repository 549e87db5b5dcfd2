// Package deploy_test checks what people install: the systemd units by systemd-analyze, and the compose file by
// compose's own check.
package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestUnitsAreWhatSystemdUnderstands(t *testing.T) {
	names := units(t)
	root := t.TempDir()
	system := filepath.Join(root, "etc/systemd/system")
	bin := filepath.Join(root, "usr/bin")
	for _, dir := range []string{system, bin, filepath.Join(root, "lib/systemd")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "-a", "/lib/systemd/system", filepath.Join(root, "lib/systemd/")).CombinedOutput(); err != nil {
		t.Fatalf("copy the system's units: %v: %s", err, out)
	}
	starts := regexp.MustCompile(`(?m)^ExecStart=(/usr/bin/\S+)`)
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(system, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, m := range starts.FindAllSubmatch(text, -1) { // systemd looks whether there is something to run
			if err := os.WriteFile(filepath.Join(root, string(m[1])), []byte("#!/bin/true\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--root=" + root}, names...)...).CombinedOutput()
	if err != nil || len(out) > 0 { // a key that it does not know is only a warning
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// units lists the files of systemd.
func units(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*.service", "*.socket"} {
		found, err := filepath.Glob(filepath.Join("systemd", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	if len(names) < 8 {
		t.Fatalf("only %d units are there", len(names))
	}
	return names
}

func TestNatHasOneCapability(t *testing.T) {
	text, err := os.ReadFile("systemd/fulmar-nat.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\nCapabilityBoundingSet=CAP_NET_ADMIN\nAmbientCapabilities=CAP_NET_ADMIN\n") {
		t.Error("nat's unit does not give it CAP_NET_ADMIN alone")
	}
}

func TestEveryServiceHasAUnitAndAContainer(t *testing.T) {
	compose, err := os.ReadFile("compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"builder", "ipam", "vmm", "monitor", "nat", "gc", "tls"} {
		if _, err := os.Stat("systemd/fulmar-" + service + ".service"); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(compose), "\n  "+service+":\n") {
			t.Errorf("the compose file has no service %s", service)
		}
	}
}

// TestTheEndpointHasNoRights looks at the one service that strangers can reach: it must have nothing but its sockets.
func TestTheEndpointHasNoRights(t *testing.T) {
	text, err := os.ReadFile("systemd/fulmar-tls.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"DynamicUser=yes", "CapabilityBoundingSet=", "PrivateNetwork=yes", "PrivateDevices=yes", "RestrictAddressFamilies=AF_UNIX",
		"NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryDenyWriteExecute=yes", "SystemCallFilter=@system-service", "SupplementaryGroups=fulmar",
	} {
		if !strings.Contains(string(text), "\n"+want+"\n") {
			t.Errorf("its unit does not say %s", want)
		}
	}
	for _, file := range []string{"server.pem", "server.key", "cacert.pem"} { // the user of the service cannot read them itself
		if !strings.Contains(string(text), "\nLoadCredential="+file+":/etc/fulmar/tls/"+file+"\n") || !strings.Contains(string(text), "=%d/"+file) {
			t.Errorf("its unit does not hand %s over", file)
		}
	}
}

// TestUnitsAreConfined has systemd judge how far each unit is confined, from 0 to 10: 5 is what it calls medium.
func TestUnitsAreConfined(t *testing.T) {
	for _, name := range units(t) {
		most, ok := map[string]string{"fulmar-host.service": "60", "fulmar-nat.service": "30", "fulmar-gc.service": "30"}[name]
		if !ok {
			most = "20"
		}
		if !strings.HasSuffix(name, ".service") {
			continue
		}
		path, err := filepath.Abs(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+most, path).CombinedOutput()
		if err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Errorf("%s: more than %s tenths: %v: %s", name, most, err, lines[len(lines)-1])
		}
	}
}

func TestComposeFileIsWhatComposeUnderstands(t *testing.T) {
	args := []string{"docker", "compose"}
	if exec.Command("docker", "compose", "version").Run() != nil {
		args = []string{"docker-compose"}
	}
	args = append(args, "-f", "compose/compose.yaml", "config", "-q")
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
