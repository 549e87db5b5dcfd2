package git_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/services/builder/git"
)

// submodule adds a commit of another repository at a path, without a work tree of it.
func (r *repository) submodule(name, path, url, commit string) {
	r.t.Helper()
	r.git("config", "--file", ".gitmodules", "submodule."+name+".path", path)
	r.git("config", "--file", ".gitmodules", "submodule."+name+".url", url)
	r.git("update-index", "--add", "--cacheinfo", "160000,"+commit+","+path)
	r.git("add", ".gitmodules")
	r.git("commit", "--quiet", "--message=submodule")
}

func TestSubmodulesAreInTheContext(t *testing.T) {
	w := newWorld(t)
	inner := w.repository(t, "lib/inner")
	tip := inner.commit(map[string]string{"i": "1"})
	lib := w.repository(t, "lib/lib")
	lib.commit(map[string]string{"l.c": "l"})
	lib.submodule("i", "sub/inner", "../inner", tip)
	second := lib.git("rev-parse", "HEAD")
	lib.git("commit", "--quiet", "--allow-empty", "--message=later")
	www := w.repository(t, "www")
	www.commit(map[string]string{"Dockerfile": "x", "src/a.c": "a"})
	url := w.serve(t, secret, "2")
	www.submodule("lib", "src/lib", url+"/lib/lib", second)
	www.git("update-index", "--add", "--cacheinfo", "160000,"+tip+",src/unnamed")
	www.git("commit", "--quiet", "--message=one that nobody names")
	commit := www.git("rev-parse", "HEAD")
	want := map[string]string{"a.c": "a", "lib/": "", "lib/l.c": "l", "lib/.gitmodules": lib.git("show", "HEAD:.gitmodules") + "\n", "lib/sub/": "", "lib/sub/inner/": "", "lib/sub/inner/i": "1", "unnamed/": ""}
	got, err := w.fetch(t, git.Repository{URL: url + "/www", Credential: "right"}, commit, git.Context{Directory: "src"})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("the context is wrong: %v (-want +got):\n%s", err, diff)
	}
}

func TestASubmoduleGetsNoCredentialOfAnotherServer(t *testing.T) {
	w := newWorld(t)
	lib := w.repository(t, "lib")
	tip := lib.commit(map[string]string{"l": "1"})
	www := w.repository(t, "www")
	www.commit(nil)
	www.submodule("lib", "lib", w.serve(t, secret, "2")+"/lib", tip)
	_, err := w.fetch(t, git.Repository{URL: w.serve(t, secret, "2") + "/www", Credential: "right"}, www.git("rev-parse", "HEAD"), git.Context{})
	refused(t, err, notFound, "asks for a credential, and the request names none")
}

func TestSubmodulesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	tip := w.repository(t, "lib").commit(map[string]string{"l": "1"})
	url := w.serve(t, "", "2")
	for i, c := range []struct{ url, want string }{
		{"file://" + w.root + "/lib", "a repository of another machine cannot have files of this one"},
		{"ext::sh -c whoami", "is not the URL of a repository"},
		{"-u/x", "is not the URL of a repository"},
	} {
		www := w.repository(t, fmt.Sprint("www", i))
		www.commit(nil)
		www.submodule("lib", "lib", c.url, tip)
		_, err := w.fetch(t, git.Repository{URL: url + fmt.Sprint("/www", i)}, www.git("rev-parse", "HEAD"), git.Context{})
		refused(t, err, build, c.want)
	}
	loop := w.repository(t, "loop")
	commit := loop.commit(nil)
	for range 5 { // each of which has the one before it
		loop.submodule("loop", "loop", "../loop", commit)
		commit = loop.git("rev-parse", "HEAD")
	}
	_, err := w.fetch(t, git.Repository{URL: url + "/loop"}, commit, git.Context{})
	refused(t, err, build, "deeper than 4")
	many := w.repository(t, "many")
	many.commit(nil)
	for i := range 33 {
		many.git("config", "--file", ".gitmodules", fmt.Sprintf("submodule.%d.path", i), fmt.Sprint("m", i))
		many.git("config", "--file", ".gitmodules", fmt.Sprintf("submodule.%d.url", i), "../lib")
		many.git("update-index", "--add", "--cacheinfo", fmt.Sprintf("160000,%s,m%d", tip, i))
	}
	many.git("add", ".gitmodules")
	many.git("commit", "--quiet", "--message=x")
	_, err = w.fetch(t, git.Repository{URL: "file://" + w.root + "/many"}, many.git("rev-parse", "HEAD"), git.Context{})
	refused(t, err, build, "it has more than 32 submodules")
}
