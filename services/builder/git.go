package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/buildlog"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/git"
	"fulmar/services/builder/mirage"
)

// slotWait is how long a build waits for one of those that run here to end, before it is offered to the other builders.
const slotWait = 2 * time.Second

// recipe is how an engine builds a commit.
type recipe struct {
	build docker.Build
	path  string // of the unikernel in the image that it builds
	words []string
	// text is a Dockerfile that is not the repository's own.
	text func(docker.Builder) (string, error)
}

// generated is the name of a Dockerfile that the builder adds to a context.
const generated = ".fulmar.Dockerfile"

// git plans an image that is built from a commit. It is known by the repository, the commit, the directory and the recipe,
// and not by the engine: a commit is the same everywhere, but nobody is asked whether a repository has the one that a request
// names, and what was built from another must not pass for its. A base image goes into it as the recipe names it.
func (s *sources) git(ctx context.Context, g *fulmarv1.GitSource, l *log) (plan, error) {
	repository := git.Repository{URL: g.GetUrl(), Credential: g.GetCredential()}
	r, err := s.recipe(g)
	if err != nil {
		return plan{}, err
	}
	commit, err := s.commit(ctx, g)
	if err != nil {
		return plan{}, err
	}
	p := plan{kind: "git", key: keyOf("git", append([]string{g.GetUrl(), commit, path.Clean(g.GetDirectory())}, r.words...)...), facts: &fulmarv1.Build{Commit: commit}}
	p.make = func(ctx context.Context, l *log, out *os.File) error {
		release, err := s.slot(ctx, l)
		if err != nil {
			return err
		}
		defer release()
		r := r
		if r.build.Builder, err = s.config.Engine.Builder(ctx, r.build); err != nil { // before anything is fetched for it
			return err
		}
		l.sayf("%s is commit %s", messages.SourceText(&fulmarv1.Image{Source: &fulmarv1.Image_Git{Git: g}}), commit)
		checkout, err := s.config.Git.Checkout(ctx, repository, commit)
		if err != nil {
			return err
		}
		defer checkout.Close()
		defer s.prune(ctx, l)
		id, err := s.run(ctx, g, r, checkout, l)
		if err != nil {
			return err
		}
		p.facts.ImageDigest = id
		l.sayf("take %s out of docker image %s", r.path, id)
		err = s.config.Engine.Extract(ctx, id, r.path, out, s.config.MaxImage)
		if derr := s.config.Engine.Discard(context.WithoutCancel(ctx), id); derr != nil {
			l.sayf("docker image %s was not removed: %s", id, derr)
		}
		return err
	}
	return p, nil
}

// prune bounds what the engine keeps for later builds.
func (s *sources) prune(ctx context.Context, l *log) {
	if s.config.Recipes.Cache == 0 {
		return
	}
	if err := s.config.Engine.PruneCache(context.WithoutCancel(ctx), s.config.Recipes.Cache); err != nil {
		l.sayf("the build cache was not pruned: %s", err)
	}
}

// commit asks which commit a source is now.
func (s *sources) commit(ctx context.Context, g *fulmarv1.GitSource) (string, error) {
	return s.config.Git.Resolve(ctx, git.Repository{URL: g.GetUrl(), Credential: g.GetCredential()}, g.GetRef())
}

// slot waits until another build from Git may run here.
func (s *sources) slot(ctx context.Context, l *log) (release func(), err error) {
	release = func() { <-s.slots }
	select {
	case s.slots <- struct{}{}:
		return release, nil
	default:
	}
	l.sayf("waits: %d builds run here", cap(s.slots))
	late := time.NewTimer(slotWait)
	defer late.Stop()
	select {
	case s.slots <- struct{}{}:
		return release, nil
	case <-late.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// recipe reads how a source is built.
func (s *sources) recipe(g *fulmarv1.GitSource) (recipe, error) {
	r := recipe{build: docker.Build{
		Memory: int64(g.GetMemory()) << 20, MilliCPUs: int64(g.GetMilliCpus()), Limit: g.GetLimit().AsDuration(), Network: s.config.Recipes.Network,
	}}
	switch from := g.GetRecipe().(type) {
	case *fulmarv1.GitSource_Dockerfile:
		d := from.Dockerfile
		r.path, r.build.Dockerfile, r.build.Args, r.build.Target = d.GetPath(), d.GetFile(), d.GetArgs(), d.GetTarget()
		r.words = []string{"dockerfile", d.GetFile(), d.GetTarget(), d.GetPath()}
		for _, name := range slices.Sorted(maps.Keys(d.GetArgs())) {
			r.words = append(r.words, name, d.GetArgs()[name])
		}
	case *fulmarv1.GitSource_Mirage:
		r.path, r.build.Dockerfile = mirage.Result(from.Mirage), generated
		r.text = func(b docker.Builder) (string, error) {
			return mirage.Dockerfile(from.Mirage, mirage.Options{Base: s.config.Recipes.Mirage, Mounts: b == docker.BuildKit})
		}
		text, err := r.text(docker.Classic)
		if err != nil {
			return recipe{}, err
		}
		r.words = []string{"mirage", r.path, text}
	}
	r.build.Name = keyOf("git", append([]string{g.GetUrl(), g.GetDirectory()}, r.words...)...)[:32]
	return r, nil
}

// run builds a commit on the engine and gives the id of the image.
func (s *sources) run(ctx context.Context, g *fulmarv1.GitSource, r recipe, checkout *git.Checkout, l *log) (id string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := s.context(ctx, g, r, checkout)
	if err != nil {
		return "", err
	}
	in, out := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() { _ = out.CloseWithError(checkout.Tar(ctx, c, out)) }) // the engine's side gets its error
	id, err = s.config.Engine.Build(ctx, r.build, in, func(line docker.Line) { l.say(lineOf(line)) })
	cancel()
	_ = in.Close()
	writing.Wait()
	return id, err
}

// context gives what of a commit is the context of its build.
func (s *sources) context(ctx context.Context, g *fulmarv1.GitSource, r recipe, checkout *git.Checkout) (git.Context, error) {
	c := git.Context{Directory: g.GetDirectory()}
	if r.text != nil {
		text, err := r.text(r.build.Builder)
		if err != nil {
			return c, err
		}
		c.Add = []git.File{{Name: generated, Text: []byte(text)}}
	}
	for _, name := range []string{r.build.Dockerfile + ".dockerignore", ".dockerignore"} { // the one of the Dockerfile itself goes first
		ignore, err := checkout.ReadFile(ctx, path.Join(g.GetDirectory(), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			c.Keep, err = docker.KeepFile(ignore, r.build.Dockerfile)
		}
		if err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		break
	}
	return c, nil
}

func lineOf(l docker.Line) buildlog.Line {
	line := buildlog.Line{Step: l.Step, State: string(l.State), Text: l.Text}
	if l.State == docker.Done {
		line.Text = l.Took.Round(time.Millisecond).String()
	}
	return line
}
