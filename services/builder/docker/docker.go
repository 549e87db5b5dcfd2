// Package docker gets files out of the images of a Docker engine, by its API: the engine that DOCKER_HOST and its
// companions name, from version 20.10 on, on this machine or another.
//
// What it does to the engine is bounded. An image that is pulled stays: it is the cache of the engine, which whoever
// runs the engine prunes as usual. A file is copied out of a container that is created for it and never run.
//
// The invariant it guards: no container outlasts the call that made it, unless the engine or the builder dies first;
// then the next call, or [Engine.Sweep] at the next start of the builder, removes it.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/client"
)

// Config is what an engine is told.
type Config struct {
	// Host of the engine, as DOCKER_HOST has it: unix:///path or tcp://host:port. Empty: what the environment says in
	// DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, else the engine of this machine.
	Host string
	// Owner labels what the builder makes in the engine. A builder that is started again finds what it left by it, so
	// it is the same then; a builder elsewhere that uses the same engine has another one.
	Owner string
}

// Engine is one Docker engine.
type Engine struct {
	api   *client.Client
	owner string

	mu    sync.Mutex
	using map[string]bool // containers that an extraction is at, by name
	left  map[string]bool // containers that could not be removed, by name

	held     map[string]bool     // references of images of builds that run or are not discarded
	built    map[string][]string // references of images that are not discarded, by id
	classics int                 // builds that run by the classic builder

	answer time.Duration // for an answer to a question that needs no work
}

// answers is how long an engine that is well may take for an answer to a question that needs no work.
const answers = 30 * time.Second

// New prepares the use of an engine. It does not look whether the engine is there.
func New(c Config) (*Engine, error) {
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if c.Host != "" {
		options = append(options, client.WithHost(c.Host))
	}
	api, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("use a docker engine: %w", err)
	}
	if u, err := url.Parse(api.DaemonHost()); err == nil && u.Scheme == "ssh" {
		return nil, fmt.Errorf("use a docker engine: %s: an engine is reached by unix:// or tcp://; forward its socket to use ssh", u.Redacted())
	}
	return &Engine{api: api, owner: c.Owner, using: map[string]bool{}, left: map[string]bool{}, held: map[string]bool{}, built: map[string][]string{}, answer: answers}, nil
}

// errSilent reports an engine that does not answer.
var errSilent = errors.New("it takes the question and does not answer")

// Close lets go of the connections.
func (e *Engine) Close() error { return e.api.Close() }

// Host is where the engine is, as DOCKER_HOST has it.
func (e *Engine) Host() string { return e.api.DaemonHost() }

// Ping reports whether the engine answers.
func (e *Engine) Ping(ctx context.Context) error {
	_, err := e.ping(ctx)
	return err
}

// ping asks an engine what it is. One that takes the question and does not answer is as good as none.
func (e *Engine) ping(ctx context.Context) (types.Ping, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.answer, errSilent)
	defer cancel()
	answer, err := e.api.Ping(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		err = errSilent
	}
	if err != nil {
		return answer, fmt.Errorf("ask the docker engine: %w", err)
	}
	return answer, nil
}
