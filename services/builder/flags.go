package builder

import (
	"errors"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fulmar/services/builder/credential"
	"fulmar/services/builder/docker"
	"fulmar/services/builder/git"
	"fulmar/services/builder/policy"
	"fulmar/services/builder/watch"
)

// Flags is what every command that runs a builder takes.
type Flags struct {
	MaxImage    int64         `env:"BUILDER_MAX_IMAGE" default:"268435456" placeholder:"BYTES" help:"Largest image."`
	MaxSource   int64         `env:"BUILDER_MAX_SOURCE" default:"1073741824" placeholder:"BYTES" help:"Largest commit of a Git repository."`
	Fetch       time.Duration `env:"BUILDER_FETCH" default:"5m" help:"Longest time for what comes from elsewhere: a URL, a registry, a repository."`
	Patience    time.Duration `env:"BUILDER_PATIENCE" default:"30s" help:"How long a source that fails is tried again."`
	Credentials string        `env:"BUILDER_CREDENTIALS" placeholder:"DIR" help:"Directory of credentials for registries and repositories, one file each; requests name them. Empty: none."`
	KnownHosts  string        `env:"BUILDER_KNOWN_HOSTS" placeholder:"FILE" help:"Host keys of SSH servers, beside those of the system."`
	DockerHost  string        `env:"BUILDER_DOCKER_HOST" placeholder:"URL" help:"Docker engine, unix:// or tcp:// (default: DOCKER_HOST with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, else the engine of this machine)."`
	ID          string        `name:"builder-id" env:"BUILDER_ID" default:"${host}" help:"Names this builder to its engine. Builders that share an engine have names of their own."`
	Policy      string        `env:"BUILDER_POLICY" placeholder:"FILE" help:"Policy of sources and signatures, in YAML. Empty: every source is taken, signed or not."`
	Builds      int           `env:"BUILDER_BUILDS" help:"Builds from Git that run at once (default: one for every two CPUs)."`
	BuildCache  int64         `env:"BUILDER_BUILD_CACHE" default:"21474836480" placeholder:"BYTES" help:"What BuildKit may keep for later builds, of everybody who builds on this engine. 0: as the engine does by itself."`
	Network     string        `name:"build-network" env:"BUILDER_NETWORK" placeholder:"none|host" help:"Network of the commands of a build (default: that of the engine)."`
	MirageBase  string        `name:"mirage-base" env:"BUILDER_MIRAGE_BASE" placeholder:"IMAGE" help:"Base image of MirageOS recipes that name none (default: that of their version of the tool)."`

	Watch watch.Flags `embed:""`
}

// Config makes the configuration of a builder that takes files below a root.
func (f Flags) Config(fileRoot string, r prometheus.Registerer) (Config, error) {
	credentials := credential.Directory(f.Credentials)
	follow, err := f.Watch.Config(credentials, r)
	if err != nil {
		return Config{}, err
	}
	allowed, err := policy.Load(f.Policy)
	if err != nil {
		return Config{}, err
	}
	engine, err := docker.New(docker.Config{Host: f.DockerHost, Owner: f.ID})
	if err != nil {
		return Config{}, err
	}
	repositories, err := git.New(git.Config{
		Credentials: credentials, KnownHosts: f.KnownHosts, FileRoot: fileRoot, MaxSize: f.MaxSource, Ask: min(f.Fetch, f.Patience), Fetch: f.Fetch,
	})
	if err != nil {
		return Config{}, errors.Join(err, engine.Close())
	}
	if f.Builds <= 0 {
		f.Builds = max(runtime.NumCPU()/2, 1)
	}
	return Config{
		FileRoot: fileRoot, Credentials: credentials, Engine: engine, Git: repositories, Policy: allowed,
		Recipes:  Recipes{Builds: f.Builds, Network: f.Network, Mirage: f.MirageBase, Cache: f.BuildCache},
		MaxImage: f.MaxImage, Fetch: f.Fetch, Patience: f.Patience, Watch: follow,
	}, nil
}
