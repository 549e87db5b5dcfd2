// Package mirage writes the Dockerfile of a MirageOS recipe: first the tools and what the project depends on, known from
// its configuration file alone, then its sources. It is pure: it hears a recipe and says a text.
//
// The invariant it guards: no argument of a recipe is ever read by a shell, and a change that leaves the configuration
// file as it was leaves every layer before the sources as it was.
package mirage

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// Base images for the versions of the mirage tool, for a builder that is told no other.
const (
	DefaultBase3 = "ocaml/opam:ubuntu-ocaml-4.11"
	DefaultBase4 = "ocaml/opam:debian-12-ocaml-4.14"
)

const (
	home       = "/home/opam"
	repository = home + "/repo" // where the sources go
	downloads  = home + "/.opam/download-cache"
	dune       = home + "/.cache/dune"
)

// plain are the paths that mean themselves to COPY: no pattern, no variable, no space.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./][A-Za-z0-9_./+@,=-]*$`)

// Options are what a builder adds to a recipe.
type Options struct {
	// Base is the image that has opam and OCaml, for a recipe that names none. Empty: the default of its version.
	Base string
	// Mounts says that the engine builds by BuildKit and so has mounts for the caches of opam and dune.
	Mounts bool
}

// Result is the path of the unikernel in the image that the recipe builds.
func Result(r *fulmarv1.MirageRecipe) string { return "/unikernel." + r.GetTarget() }

// Dockerfile writes the Dockerfile of a recipe that messages has normalized. Its context is the directory of the recipe.
func Dockerfile(r *fulmarv1.MirageRecipe, o Options) (string, error) {
	if !plain.MatchString(r.GetConfig()) {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "mirage: config %q has characters that a Dockerfile takes for a pattern or a variable", r.GetConfig())
	}
	f := file{recipe: r, options: o}
	switch r.GetMirage() {
	case 3:
		f.version3()
	case 4:
		f.version4()
	default:
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "mirage: version %d is neither 3 nor 4", r.GetMirage())
	}
	f.line("")
	f.line("FROM scratch")
	f.line("COPY --from=build %s %s", path.Join(f.directory(), "dist", "unikernel."+r.GetTarget()), Result(r))
	return f.text.String(), nil
}

// file is a Dockerfile on its way.
type file struct {
	recipe  *fulmarv1.MirageRecipe
	options Options
	text    strings.Builder
}

func (f *file) version3() {
	f.tools(DefaultBase3, "ocaml-freestanding", "mirage<4.0.0")
	f.configuration()
	f.instructions()
	f.configure()
	f.run("opam", "exec", "--", "make", "depend")
	f.sources()
	f.configure()
	f.run("opam", "exec", "--", "make")
	f.line(`RUN set -- *.%[1]s && test $# -eq 1 && mkdir -p dist && cp -- "$1" dist/unikernel.%[1]s`, f.recipe.GetTarget())
}

func (f *file) version4() {
	f.tools(DefaultBase4, "mirage>=4.0.0", "opam-monorepo")
	f.configuration()
	f.configure("-o", "unikernel")
	f.instructions()
	f.run("opam", "exec", "--", "make", "depend")
	f.sources()
	f.configure("-o", "unikernel")
	f.run("opam", "exec", "--", "mirage", "build")
}

// tools begins the stage with the tool itself, at the state of the packages that the recipe asks for.
func (f *file) tools(base string, packages ...string) {
	if f.options.Base != "" {
		base = f.options.Base
	}
	if b := f.recipe.GetBase(); b != "" {
		base = b
	}
	f.line("FROM %s AS build", base)
	f.line("USER 1000:1000")
	f.line("ENV OPAMYES=1 OPAMCONFIRMLEVEL=unsafe-yes DUNE_CACHE=enabled DUNE_CACHE_TRANSPORT=direct DUNE_CACHE_STORAGE_MODE=copy DUNE_CACHE_DUPLICATION=copy")
	f.line("RUN sudo apt-get update && sudo apt-get install -y m4 pkg-config")
	f.line("RUN mkdir -p %s %s", downloads, dune) // or the mounts would make them, and what they lie in, for root
	if c := f.recipe.GetOpamRepository(); c != "" {
		f.line("RUN cd %s/opam-repository && git fetch origin %s && git reset --hard %s && opam update", home, c, c)
	}
	names := "'" + strings.Join(packages, "' '") + "'"
	// The first opam of these images needs a plugin for the packages of the system, the later ones refuse it.
	f.line("RUN %scase $(opam --version) in 2.0.*) opam depext -ui %s;; *) opam install %s;; esac", f.mounts(), names, names)
}

// configuration takes the configuration file alone into the image, so that what follows is kept until it changes.
func (f *file) configuration() {
	f.line("RUN mkdir -p %s", f.directory())
	f.line("WORKDIR %s", f.directory())
	f.line("COPY --chown=1000:1000 %s %s", f.recipe.GetConfig(), path.Join(repository, f.recipe.GetConfig()))
}

func (f *file) instructions() {
	for _, i := range f.recipe.GetInstructions() {
		f.line("%s", i)
	}
}

func (f *file) sources() {
	f.line("COPY --chown=1000:1000 . %s/", repository)
}

func (f *file) configure(options ...string) {
	args := append([]string{"opam", "exec", "--", "mirage", "configure", "-f", path.Base(f.recipe.GetConfig())}, options...)
	f.run(append(append(args, "-t", f.recipe.GetTarget()), f.recipe.GetArgs()...)...)
}

// run adds a command that no shell reads.
func (f *file) run(args ...string) {
	text, _ := json.Marshal(args) // strings always can be; it writes < as a number, so that nothing looks like a here-document
	f.line("RUN %s%s", f.mounts(), text)
}

func (f *file) mounts() string {
	if !f.options.Mounts {
		return ""
	}
	return fmt.Sprintf("--mount=type=cache,id=fulmar-opam,target=%s,uid=1000,gid=1000 --mount=type=cache,id=fulmar-dune,target=%s,uid=1000,gid=1000 ", downloads, dune)
}

// directory is where the configuration file lies in the image.
func (f *file) directory() string {
	return path.Join(repository, path.Dir(f.recipe.GetConfig()))
}

func (f *file) line(format string, args ...any) {
	fmt.Fprintf(&f.text, format+"\n", args...)
}
