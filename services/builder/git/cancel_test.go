package git_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fulmar/services/builder/git"
)

// doomed is the first argument of a test binary that is to be killed.
const doomed = "fetch-for-ever"

// fetchForEver is a builder that is killed while it fetches.
func fetchForEver(temp, url string) {
	c, err := git.New(git.Config{Temp: temp, MaxSize: 1 << 20, Ask: time.Minute, Fetch: time.Minute})
	if err == nil {
		_, err = c.Checkout(context.Background(), git.Repository{URL: url}, strings.Repeat("1", 40))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// silent is a server that hears a question and never answers; it tells when it was asked and when nobody waits any more.
func silent(t *testing.T) (url string, asked, left chan struct{}) {
	t.Helper()
	asked, left = make(chan struct{}, 8), make(chan struct{}, 8)
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-over:
		}
		left <- struct{}{}
	}))
	t.Cleanup(func() {
		close(over)
		server.Close()
	})
	return server.URL + "/www", asked, left
}

// await waits until nobody asks the server any more, which what helps git does for longer when nobody ends it.
func await(t *testing.T, left chan struct{}) {
	t.Helper()
	select {
	case <-left:
	case <-time.After(15 * time.Second):
		t.Fatal("somebody still waits for an answer")
	}
}

// running lists the processes that work in a directory.
func running(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range all {
		if cwd, err := os.Readlink(path); err == nil && strings.HasPrefix(cwd, dir) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func TestCancelKillsGitAndAllThatItStarted(t *testing.T) {
	w := newWorld(t)
	url, asked, left := silent(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(errors.New("a newer one is there"))
	}()
	if _, err := w.client.Checkout(ctx, git.Repository{URL: url}, strings.Repeat("1", 40)); err == nil || !strings.Contains(err.Error(), "a newer one is there") {
		t.Errorf("Checkout = %v, want why it was canceled", err)
	}
	await(t, left)
	if found := running(t, w.temp); len(found) != 0 {
		t.Errorf("there still are %q", found)
	}
}

func TestAServerThatNeverAnswersHasItsTime(t *testing.T) {
	w := newWorld(t)
	w.config.Ask = 300 * time.Millisecond
	w.start(t)
	url, _, left := silent(t)
	_, err := w.client.Resolve(t.Context(), git.Repository{URL: url}, "main")
	transient(t, err, "deadline exceeded")
	await(t, left)
	if found := running(t, w.temp); len(found) != 0 {
		t.Errorf("there still are %q", found)
	}
}

func TestTheNextClientRemovesWhatAKilledOneLeft(t *testing.T) {
	temp := t.TempDir()
	url, asked, left := silent(t)
	builder := exec.Command("/proc/self/exe", doomed, temp, url)
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	living, err := git.New(git.Config{Temp: temp})
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if dirs := list(t, temp); len(dirs) != 2 {
		t.Errorf("there are %v, want those of two living clients", dirs)
	}
	if err := builder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = builder.Wait()
	next, err := git.New(git.Config{Temp: temp})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	await(t, left) // what helped git was waiting for the server still
	if dirs := list(t, temp); len(dirs) != 2 {
		t.Errorf("there are %v, want those of two living clients", dirs)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
