package host_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fulmar/albatross"
	"fulmar/services/host"
	"fulmar/services/host/hosttest"
)

// built builds host and the tenders as everybody's, and returns their directory.
func built(b *testing.B, cfg *host.Config) string {
	b.Helper()
	dir := filepath.Join(filepath.Dir(cfg.RunDir), "bin")
	if out, err := exec.Command("go", "build", "-o", dir+"/", "fulmar/cmd/host", "fulmar/cmd/fulmar-hvt", "fulmar/cmd/fulmar-spt").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		b.Fatal(err)
	}
	cfg.Tender = filepath.Join(dir, "fulmar-hvt")
	return dir
}

// benchTargets has an image of each target without devices, and the arguments with which it says up and waits.
func benchTargets(b *testing.B) map[string]albatross.Config {
	b.Helper()
	return map[string]albatross.Config{
		"spt": unikernel(hosttest.Guest(b, 0), 0, "wait"), "hvt": unikernel(machineImage(b, 0, 0), 0, "wait", "18446744073709551615"),
	}
}

// BenchmarkRunning measures from the request, or from the start of a tender's process, to the first line that the unikernel says.
func BenchmarkRunning(b *testing.B) {
	cfg := config(b)
	dir := built(b, &cfg)
	bridge(b)
	d := start(b, cfg)
	all := benchTargets(b)
	all["spt with a tap"] = unikernel(hosttest.Guest(b, 1), 1, "wait")
	for _, target := range []string{"spt", "spt with a tap", "hvt"} {
		b.Run(target+"/by host", func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				took = append(took, d.running(b, name(b, fmt.Sprintf("run:u%d", i)), all[target]))
			}
			b.ReportMetric(median(took), "ms/median")
		})
	}
	for _, tender := range []string{"fulmar-spt", "fulmar-hvt", "solo5-spt", "solo5-hvt"} {
		program := filepath.Join(dir, tender)
		if strings.HasPrefix(tender, "solo5") {
			var err error
			if program, err = exec.LookPath(tender); err != nil {
				continue // it is not installed
			}
		}
		target := tender[len(tender)-3:]
		image := filepath.Join(dir, target+".image")
		if err := os.WriteFile(image, all[target].Image, 0o600); err != nil {
			b.Fatal(err)
		}
		b.Run(target+"/"+tender+" alone", func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				took = append(took, alone(b, program, append([]string{"--mem=8", "--", image}, all[target].Arguments...)...))
			}
			b.ReportMetric(median(took), "ms/median")
		})
	}
}

// running creates a unikernel, returns how long it took until its first line came, and destroys it.
func (d *daemon) running(b *testing.B, n albatross.Name, cfg albatross.Config) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	conn := dial(b, d.cfg, albatross.ConsoleSocket)
	defer func() { _ = conn.Close() }()
	subscribe := albatross.Wire{Header: albatross.Header{Name: n}, Payload: albatross.ConsoleSubscribe{}}
	if err := albatross.WriteFrame(conn, mustMarshal(b, subscribe)); err != nil {
		b.Fatal(err)
	}
	receive(b, conn)
	begin := time.Now()
	if err := d.Create(ctx, n, cfg); err != nil {
		b.Fatal(err)
	}
	receive(b, conn)
	took := time.Since(begin)
	if err := d.Destroy(ctx, n); err != nil {
		b.Fatal(err)
	}
	return took
}

// alone runs a tender until its first line, and returns how long that took.
func alone(b *testing.B, program string, args ...string) time.Duration {
	b.Helper()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begin)
	if err != nil {
		b.Errorf("%s said %q: %v", program, line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return took
}

// BenchmarkMemory measures what each of 50 unikernels that do nothing costs: its process, and host.
func BenchmarkMemory(b *testing.B) {
	const count = 50
	cfg := config(b)
	program := filepath.Join(built(b, &cfg), "host")
	all := benchTargets(b)
	for _, target := range []string{"spt", "hvt"} {
		b.Run(target, func(b *testing.B) {
			for b.Loop() {
				h := startChild(b, program, cfg)
				before := proportional(b, h.cmd.Process.Pid)
				h.all(b, "creates", count, func(n albatross.Name) error { return h.Create(b.Context(), n, all[target]) })
				var each []int
				for i := range count {
					h.await(b, hundredth(b, i), is("up"))
				}
				for i := range count {
					each = append(each, proportional(b, stored(b, cfg, hundredth(b, i)).PID))
				}
				slices.Sort(each)
				b.ReportMetric(float64(each[count/2])/1024, "MB/process")
				b.ReportMetric(float64(proportional(b, h.cmd.Process.Pid)-before)/count, "KB/unikernel-of-host")
				h.all(b, "destroys", count, func(n albatross.Name) error { return h.Destroy(b.Context(), n) })
				h.end(b, syscall.SIGTERM)
			}
		})
	}
}

// proportional is the memory of a process in KB; what it shares with others counts for each in part.
func proportional(b *testing.B, pid int) (kb int) {
	b.Helper()
	text := field(proc(b, pid, "smaps_rollup"), "Pss")
	if _, err := fmt.Sscanf(text, "%d kB", &kb); err != nil {
		b.Fatalf("memory %q: %v", text, err)
	}
	return kb
}
