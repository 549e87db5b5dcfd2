package e2e_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"fulmar/e2e/lab"
	"fulmar/services/builder/docker/dockertest"
)

// TestImagesOfDockerAndGitByTheCommandLine deploys hello out of a Docker image, updates it by a build from Git, and looks at
// where both came from.
func TestImagesOfDockerAndGitByTheCommandLine(t *testing.T) {
	w := newLab(t)
	engine := dockertest.Start(t)
	api := dockertest.Client(t, engine.Host())
	dockertest.Import(t, api, "www:live", dockertest.File{Name: "hello.spt", Body: w.imageBytes()})
	dockertest.Import(t, api, "base:test", dockertest.Programs(t)...)
	up, err := w.Up("--docker-host", engine.Host(), "--build-network", "none")
	if err != nil {
		t.Fatal(err)
	}
	w.keep(up)
	w.connect()
	says := func(text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("it does not say %q:\n%s", want, text)
			}
		}
	}
	deploy := func(image, text string, more ...string) (out, errout string, err error) {
		var o, e bytes.Buffer
		args := append([]string{"deploy", "web", image, "--port", "8080:80/tcp", "--memory", "16"}, append(lab.HelloArgs(text), more...)...)
		err = w.FulmarTo(w.patient(), &o, &e, args...)
		return o.String(), e.String(), err
	}

	out, errout, err := deploy("docker:www:live#/hello.spt", "v1")
	if err != nil {
		t.Fatalf("%v: %s", err, errout)
	}
	says(out, "web: docker image www:live is sha256:", "web: take /hello.spt out of docker image sha256:", "from docker:www:live#/hello.spt, built in")
	w.answers(8080, "v1")

	p := w.project()
	p.write("Dockerfile", []byte("FROM base:test\nARG STATUS=0\nCOPY hello.spt /unikernel\nRUN echo it is built; exit $STATUS\n"))
	commit := p.push()
	out, errout, err = deploy("git+"+p.url+"#main", "v2", "--build-arg", "STATUS=7")
	if err == nil {
		t.Errorf("a build that fails gives\n%s", out)
	}
	says(out+errout, "[3/3] RUN echo it is built; exit 7: failed: ", `"it is built"`, "fulmar logs --build web-2 shows all of it")
	says(w.cli("logs", "--build", "web-2"), "web | git+"+p.url+"#main is commit "+commit, "web | it is built\n", "web | failed after ")
	w.answers(8080, "v1")

	for n, want := range []string{"[3/3] RUN echo it is built; exit 0: done: ", "web: cached: it was built "} {
		out, errout, err = deploy("git+"+p.url+"#main", []string{"v2", "v3"}[n])
		if err != nil {
			t.Fatalf("%v: %s", err, errout)
		}
		says(out, want, ", commit "+commit[:12])
		w.answers(8080, []string{"v2", "v3"}[n])
	}
	says(w.cli("describe", "web"), "build web: from git+"+p.url+"#main, commit "+commit[:12]+", cached (built in ", ", log web-3.web\n")
	says(w.cli("logs", "--build", "web-4"), "web | it is built\n")
	says(w.cli("--json", "logs", "--build", "web-4"), `"text":"it is built"`, `"state":"started"`)
	says(w.cli("--json", "events", "web"), `"cached":true`, `"commit":"`+commit+`"`)
	if out, err := w.Fulmar(context.WithoutCancel(w.patient()), "logs", "--build", "web-9"); err == nil || !strings.Contains(err.Error(), "nothing is known of web-9") {
		t.Errorf("the log of no build: %v\n%s", err, out)
	}
	w.cli("retire", "web", "--wait")
	w.retired()
}
