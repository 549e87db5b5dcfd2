package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/container"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

// large is what no buffer on the way holds.
const large = 64 << 20

// gate is a writer that tells of its first bytes and then waits.
type gate struct {
	once    sync.Once
	reached chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{reached: make(chan struct{}), open: make(chan struct{})} }

func (g *gate) Write(p []byte) (int, error) {
	g.once.Do(func() { close(g.reached) })
	<-g.open
	return len(p), nil
}

func TestAnEngineThatIsKilledInTheMiddleIsWorthAnotherTry(t *testing.T) {
	own := dockertest.Start(t)
	e, api := world(t, own.Host())
	id := dockertest.Import(t, api, "fulmar-kill:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	g, result := newGate(), make(chan error, 1)
	go func() { result <- e.Extract(t.Context(), id, "/unikernel", g, large) }()
	<-g.reached
	own.Kill(t)
	close(g.open)
	err := <-result
	wantRetry(t, err, "unexpected EOF")
	_, err = e.Resolve(t.Context(), docker.Reference{Image: "fulmar-kill:test"})
	wantRetry(t, err, "Cannot connect to the Docker daemon at "+own.Host())

	own.Restart(t)
	if left := containers(t, api, t.Name()); len(left) != 1 {
		t.Errorf("after the crash the engine has %v", left)
	}
	if err := e.Extract(t.Context(), id, "/unikernel", io.Discard, large); err != nil {
		t.Errorf("Extract after the restart: %v", err)
	}
}

func TestAnEngineThatIsNotThere(t *testing.T) {
	e, err := docker.New(docker.Config{Host: "unix://" + filepath.Join(t.TempDir(), "docker.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, err = e.Resolve(t.Context(), docker.Reference{Image: "www"})
	wantRetry(t, err, "look for docker image www: Cannot connect to the Docker daemon at "+e.Host())
	wantRetry(t, e.Extract(t.Context(), "www", "/unikernel", io.Discard, 1), "Cannot connect to the Docker daemon")
	wantRetry(t, e.Sweep(t.Context()), "Cannot connect to the Docker daemon")
	wantRetry(t, e.Ping(t.Context()), "Cannot connect to the Docker daemon")
}

func TestACallThatIsBrokenOffLeavesNothing(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-cancel:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	ctx, cancel := context.WithCancel(t.Context())
	g, result := newGate(), make(chan error, 1)
	go func() { result <- e.Extract(ctx, id, "/unikernel", g, large) }()
	<-g.reached
	cancel()
	close(g.open)
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Extract = %v, want %v", err, context.Canceled)
	}
	if err := e.Extract(ctx, id, "/unikernel", io.Discard, large); !errors.Is(err, context.Canceled) {
		t.Errorf("Extract = %v, want %v", err, context.Canceled)
	}
}

func TestAFullDiskIsWorthAnotherTry(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-full:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	f, err := os.Create(filepath.Join(disk, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = e.Extract(t.Context(), id, "/unikernel", f, large)
	wantRetry(t, err, "no space left on device")
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the error of the disk is lost: %v", err)
	}
}

func TestManyExtractionsAtOnce(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-many:test", www("solo5"))
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if got, err := extract(t, e, id, "/unikernel"); err != nil || got != "solo5" {
				t.Errorf("Extract = %q, %v", got, err)
			}
		})
	}
	all.Wait()
}

func TestExtractHoldsNoFileInMemory(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-memory:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := e.Extract(t.Context(), id, "/unikernel", io.Discard, large); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > large/16 {
		t.Errorf("it allocates %d bytes for a file of %d", got, large)
	}
}

func TestSweepLeavesWhatIsInUse(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-use:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	g, result := newGate(), make(chan error, 1)
	go func() { result <- e.Extract(t.Context(), id, "/unikernel", g, large) }()
	<-g.reached
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := containers(t, api, t.Name()); len(left) != 1 {
		t.Errorf("after Sweep the engine has %v", left)
	}
	close(g.open)
	if err := <-result; err != nil {
		t.Errorf("Extract = %v", err)
	}
}

// victim names the image that a builder which is to be killed extracts, in its environment.
const victim = "FULMAR_TEST_VICTIM"

// waitAsVictim is the builder that is killed: it extracts and waits in the middle for ever.
func waitAsVictim() bool {
	id := os.Getenv(victim)
	if id == "" {
		return false
	}
	if builder, ok := strings.CutPrefix(id, "build-"); ok {
		buildAsVictim(builder)
		return true
	}
	e, err := docker.New(docker.Config{Owner: os.Getenv(victim + "_OWNER")})
	if err == nil {
		err = e.Extract(context.Background(), id, "/unikernel", os.Stdout, large) // nobody reads on
	}
	os.Stderr.WriteString("the victim ended: " + err.Error())
	return true
}

func TestSweepRemovesWhatAKilledBuilderLeft(t *testing.T) {
	e, api := world(t, "")
	id := dockertest.Import(t, api, "fulmar-victim:test", dockertest.File{Name: "unikernel", Body: make([]byte, large)})
	builder := exec.Command(os.Args[0])
	builder.Env = append(os.Environ(), victim+"="+id, victim+"_OWNER="+t.Name())
	out, err := builder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	builder.Stderr = &said
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Errorf("the victim wrote nothing: %v", err)
	}
	builder.Process.Kill()
	builder.Wait()
	if left := containers(t, api, t.Name()); len(left) != 1 {
		t.Fatalf("the victim left %v: %s", left, said.String())
	}

	others := map[string]map[string]string{
		"fulmar-test-neighbour": {docker.Label: "another builder"},
		"fulmar-test-stranger":  {"label": t.Name()},
	}
	for name, labels := range others {
		if _, err := api.ContainerCreate(t.Context(), &container.Config{Image: id, Cmd: []string{"/"}, Labels: labels}, nil, nil, nil, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := containers(t, api, t.Name()); len(left) > 0 {
		t.Errorf("Sweep leaves %s", strings.Join(left, ", "))
	}
	for name := range others {
		if err := api.ContainerRemove(t.Context(), name, container.RemoveOptions{}); err != nil {
			t.Errorf("Sweep removed what is not ours: %v", err)
		}
	}
}
