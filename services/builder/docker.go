package builder

import (
	"context"
	"os"
	"strings"
	"time"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/docker"
)

// docker plans an image from a file of a Docker image. It is known by that image and the path of the file: by the name with
// its digest in the request, of which nobody is asked whether it has it, or by the id that the engine resolves the reference to.
func (s *sources) docker(ctx context.Context, d *fulmarv1.DockerSource, l *log) (plan, error) {
	p := plan{kind: "docker", facts: &fulmarv1.Build{}}
	var image docker.Image
	var err error
	if _, digest, ok := strings.Cut(d.GetImage(), "@"); ok {
		p.key, p.facts.ImageDigest = keyOf("docker", d.GetImage(), d.GetPath()), digest
	} else {
		if image, err = s.resolve(ctx, d, l); err != nil {
			return plan{}, err
		}
		p.key, p.facts.ImageDigest = keyOf("docker", image.ID, d.GetPath()), image.ID
		p.facts.RegistryDigest = image.Digest
	}
	p.make = func(ctx context.Context, l *log, out *os.File) error {
		ctx, cancel := context.WithTimeout(ctx, s.config.Fetch)
		defer cancel()
		id := image.ID
		if id == "" {
			named, err := s.resolve(ctx, d, l)
			if err != nil {
				return err
			}
			id = named.ID
		}
		l.sayf("take %s out of docker image %s", d.GetPath(), id)
		return s.config.Engine.Extract(ctx, id, d.GetPath(), out, s.config.MaxImage)
	}
	return p, nil
}

// resolve finds a Docker image on the engine, which pulls it if need be.
func (s *sources) resolve(ctx context.Context, d *fulmarv1.DockerSource, l *log) (docker.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Fetch)
	defer cancel()
	c, err := s.config.Credentials.Load(d.GetCredential())
	if err != nil {
		return docker.Image{}, err
	}
	i, err := s.config.Engine.Resolve(ctx, docker.Reference{Image: d.GetImage(), Pull: docker.Pull(d.GetPull()), Credential: c})
	if err == nil {
		l.sayf("docker image %s is %s", d.GetImage(), i.ID)
	}
	return i, err
}

// latest asks which digest the registry of a tag has now.
func (s *sources) latest(ctx context.Context, d *fulmarv1.DockerSource) (string, error) {
	c, err := s.config.Credentials.Load(d.GetCredential())
	if err != nil {
		return "", err
	}
	return s.config.Engine.Latest(ctx, docker.Reference{Image: d.GetImage(), Credential: c})
}

// sweepAgain is the time between two tries to remove from an engine what an earlier run of this builder left there.
const sweepAgain = time.Minute

// sweeps removes from the engine what an earlier run of this builder left there, as soon as the engine answers.
func (s *Service) sweeps(ctx context.Context) error {
	t := time.NewTicker(sweepAgain)
	defer t.Stop()
	for {
		err := s.config.Engine.Sweep(ctx)
		if err == nil {
			return nil
		}
		s.bus.Log.Info("engine was not swept", "engine", s.config.Engine.Host(), "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
