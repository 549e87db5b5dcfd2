package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"

	"fulmar/services/builder/docker"
	"fulmar/services/builder/docker/dockertest"
)

func TestBuildKitIsTakenUnlessABuildHasLimits(t *testing.T) {
	e, _ := world(t, "")
	for want, b := range map[docker.Builder]docker.Build{docker.BuildKit: {}, docker.Classic: {Memory: 1 << 30}} {
		if got, err := e.Builder(t.Context(), b); err != nil || got != want {
			t.Errorf("the builder is %s, %v, want %s", got, err, want)
		}
	}
	if got, err := e.Builder(t.Context(), docker.Build{MilliCPUs: 1500}); err != nil || got != docker.Classic {
		t.Errorf("the builder is %s, %v", got, err)
	}
}

func TestTheLimitsOfABuildHold(t *testing.T) {
	s := newSite(t, "")
	dockerfile := "FROM " + base + "\nRUN cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2> /tmp/none; true\n"
	r, id, err := s.try(t, docker.Build{Memory: 64 << 20, MilliCPUs: 1500}, dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Join(r.of("RUN cat"), "\n")
	if !strings.Contains(said, "\n67108864\n") || !strings.Contains(said, "\n150000") {
		t.Errorf("the command saw\n%s\nwant 64 MB and 1.5 CPUs", said)
	}
	s.Discard(t.Context(), id)
	s.quiet(t)
}

func TestTwoBuildsOfTheSameImageHaveItEach(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		dockerfile := "FROM scratch\nCOPY text /unikernel\n"
		text := dockertest.File{Name: "text", Body: []byte(t.Name())}
		var ids []string
		for range 2 {
			_, id, err := s.try(t, docker.Build{Builder: builder}, dockerfile, text)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		if ids[0] != ids[1] {
			t.Fatalf("the images are %v, want one", ids)
		}
		if err := s.Sweep(t.Context()); err != nil { // it is not for what is in use
			t.Error(err)
		}
		for _, id := range ids {
			if got := s.file(t, id, "/unikernel"); got != t.Name() {
				t.Errorf("the file is %q", got)
			}
		}
		if err := s.Discard(t.Context(), ids[0]); err != nil {
			t.Errorf("Discard of what is gone: %v", err)
		}
		s.quiet(t)
	})
}

func TestWhatTheClassicBuilderKeepsIsBounded(t *testing.T) {
	s := newSite(t, "")
	for i := range 20 { // names of builds long ago
		if err := s.api.ImageTag(t.Context(), base, fmt.Sprintf("fulmar-cache:old%d-0-x", i)); err != nil {
			t.Fatal(err)
		}
	}
	var sizes []int
	for i := range 3 {
		dockerfile := fmt.Sprintf("FROM %s AS a\nRUN echo %d > /a\nFROM %s\nCOPY --from=a /a /unikernel\nRUN touch /b\n", base, i, base)
		_, id, err := s.try(t, docker.Build{Builder: docker.Classic}, dockerfile)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.file(t, id, "/unikernel"); got != strconv.Itoa(i)+"\n" {
			t.Errorf("the file is %q", got)
		}
		sizes = append(sizes, len(s.kept(t)))
	}
	if sizes[0] != 15+2 || sizes[1] != sizes[0] || sizes[2] != sizes[0] {
		t.Errorf("after each build %v references are kept, want those of 15 old names and of two stages", sizes)
	}
	if left := s.left(t); len(left) != 0 {
		t.Errorf("images are left: %v", left)
	}
}

func TestAFailureKeepsTheLayersBeforeIt(t *testing.T) {
	s := newSite(t, "")
	dockerfile := "FROM " + base + "\nRUN echo " + rand.Text() + "\nRUN exit "
	if _, _, err := s.try(t, docker.Build{Builder: docker.Classic}, dockerfile+"1\n"); err == nil {
		t.Fatal("the build did not fail")
	}
	if left := s.left(t); len(left) != 0 {
		t.Errorf("images are left: %v", left)
	}
	r, id, err := s.try(t, docker.Build{Builder: docker.Classic}, dockerfile+"0\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.of("RUN echo"); len(got) != 2 || got[1] != "cached" {
		t.Errorf("the layer before the failure was made again: %q", got)
	}
	s.Discard(t.Context(), id)
	s.quiet(t)
}

func TestSweepRemovesWhatWasNotDiscarded(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		if _, _, err := s.try(t, docker.Build{Builder: builder}, "FROM "+base+"\nRUN echo "+t.Name()+" > /x\n"); err != nil {
			t.Fatal(err)
		}
		if left := s.left(t); len(left) != 1 {
			t.Fatalf("the builder left %v", left)
		}
		next, err := docker.New(docker.Config{Owner: t.Name()})
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		if err := next.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		s.quiet(t)
	})
}

// buildAsVictim is the builder that is killed while a command of its build runs.
func buildAsVictim(builder string) {
	e, err := docker.New(docker.Config{Owner: os.Getenv(victim + "_OWNER")})
	if err == nil {
		b := docker.Build{Builder: docker.Builder(builder), Name: "victim", Dockerfile: "Dockerfile", Network: "none", Limit: time.Hour}
		_, err = e.Build(context.Background(), b, os.Stdin, func(l docker.Line) {
			if l.Text == "begun" {
				fmt.Println(l.Text)
			}
		})
	}
	os.Stderr.WriteString("the victim ended: " + err.Error())
}

func TestABuildEndsWhenItsBuilderIsKilled(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		ended := s.ends(t)
		v := exec.Command(os.Args[0])
		v.Env = append(os.Environ(), victim+"=build-"+string(builder), victim+"_OWNER="+t.Name())
		v.Stdin = archive(t, "FROM "+base+"\nRUN touch /x && echo begun && sleep "+nap()+"\n")
		var said bytes.Buffer
		v.Stderr = &said
		out, err := v.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatalf("the victim said nothing: %v: %s", err, said.String())
		}
		v.Process.Kill()
		v.Wait()
		if builder == docker.Classic {
			<-ended
		}
		s.gone(t)
		if err := s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		s.quiet(t)
	})
}

// gone waits until the commands of builds have ended, of which an engine with BuildKit sends no event.
func (s *site) gone(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for len(processes(t)) > 0 {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("after a minute there still are %q", processes(t))
		}
	}
}

func TestAnEngineThatIsKilledInABuildIsWorthAnotherTry(t *testing.T) {
	own := dockertest.Start(t)
	s := newSite(t, own.Host())
	builders(t, func(t *testing.T, builder docker.Builder) {
		r := &recorder{}
		begun := r.saying("begun")
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			<-begun
			own.Kill(t)
		}()
		_, err := s.Build(t.Context(), with(docker.Build{Builder: builder}), archive(t, "FROM "+base+"\nRUN touch /x && echo begun && sleep 2\n"), r.log)
		wantRetry(t, err, "")
		<-killed
		if err := s.Discard(t.Context(), "sha256:none"); err != nil {
			t.Error(err)
		}
		own.Restart(t)
		_, id, err := s.try(t, docker.Build{Builder: builder}, "FROM "+base+"\nRUN echo "+t.Name()+" > /unikernel\n")
		if err != nil {
			t.Fatalf("after the restart: %v", err)
		}
		if got := s.file(t, id, "/unikernel"); got != t.Name()+"\n" {
			t.Errorf("the file is %q", got)
		}
		if left := s.left(t); len(left) != 0 {
			t.Errorf("images are left: %v", left)
		}
		all, err := s.api.ContainerList(t.Context(), container.ListOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		if builder == docker.BuildKit && len(all) != 0 {
			t.Errorf("containers are left: %v", all)
		}
	})
}

func TestABaseImageThatNobodyHas(t *testing.T) {
	builders(t, func(t *testing.T, builder docker.Builder) {
		s := newSite(t, "")
		_, _, err := s.try(t, docker.Build{Builder: builder}, "FROM 127.0.0.1:1/absent:1\n")
		wantRetry(t, err, "connection refused") // the registry may come back
		s.quiet(t)
	})
}

func TestPruneCacheKeepsWhatItIsTold(t *testing.T) {
	own := dockertest.Start(t) // an engine has one such store, and other tests use it
	s := newSite(t, own.Host())
	_, id, err := s.try(t, docker.Build{Builder: docker.BuildKit}, "FROM "+base+"\nRUN echo "+t.Name()+" > /unikernel\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for _, some := range []bool{true, false} {
		keep := int64(1)
		if some {
			keep = 1 << 40
		}
		if err := s.PruneCache(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		used, err := s.api.DiskUsage(t.Context(), types.DiskUsageOptions{Types: []types.DiskUsageObject{types.BuildCacheObject}})
		if err != nil || (len(used.BuildCache) > 0) != some {
			t.Errorf("keeping %d bytes leaves %d records, %v", keep, len(used.BuildCache), err)
		}
	}
}
