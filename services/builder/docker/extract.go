package docker

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"fulmar/services/builder/rootfs"
)

// Label is on every container that a builder makes; its value is the builder's [Config.Owner].
const Label = "fulmar.builder"

const (
	// longest bounds an extraction.
	longest = 30 * time.Minute
	// abandoned is the age at which a container is nobody's, whoever made it.
	abandoned = 2 * longest
	// patience bounds a request that is not to be broken off, because it makes or removes a container.
	patience = time.Minute
)

// Extract writes the file at a path of an image to w. It refuses a path that leads to no file of at most limit bytes;
// any other error may be gone at the next try, when what was written so far is to be forgotten.
func (e *Engine) Extract(ctx context.Context, id, path string, w io.Writer, limit int64) (err error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	if err := e.clear(ctx); err != nil {
		return err
	}
	name, err := e.create(ctx, id)
	defer func() {
		if left := e.remove(ctx, name); err == nil { // else it is removed with the next try
			err = left
		}
	}()
	if err != nil {
		return err
	}
	file, err := rootfs.Find(path, limit, func(at string) (rootfs.Entry, error) { return e.look(ctx, name, at) })
	if err != nil {
		return err
	}
	return e.copy(ctx, name, file, w, limit)
}

// create makes a container of an image. The name is there to be removed whatever comes of it.
func (e *Engine) create(ctx context.Context, id string) (name string, err error) {
	name = "fulmar-" + rand.Text()
	e.mu.Lock()
	e.using[name] = true
	e.mu.Unlock()
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience) // broken off, it could be made after it was removed
	defer cancel()
	_, err = e.api.ContainerCreate(whole, &container.Config{
		Image:      id,
		Entrypoint: []string{"/never-run"}, // an image from scratch has none, and a container must have one
		Labels:     map[string]string{Label: e.owner},
	}, &container.HostConfig{NetworkMode: "none"}, nil, nil, name)
	if err != nil {
		return name, fmt.Errorf("make a container of docker image %s: %w", id, err)
	}
	return name, ctx.Err()
}

// remove removes a container, now or at the next chance.
func (e *Engine) remove(ctx context.Context, name string) error {
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := e.api.ContainerRemove(whole, name, container.RemoveOptions{Force: true, RemoveVolumes: true})
	gone := err == nil || errdefs.IsNotFound(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.using, name)
	if gone {
		delete(e.left, name)
		return nil
	}
	e.left[name] = true
	return fmt.Errorf("remove a container: %w", err)
}

// clear removes what could not be removed before.
func (e *Engine) clear(ctx context.Context) error {
	e.mu.Lock()
	var names []string
	for name := range e.left {
		names = append(names, name)
	}
	e.mu.Unlock()
	for _, name := range names {
		if err := e.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes the containers and images that an earlier run of this builder left, and the ones that any builder left long ago.
func (e *Engine) Sweep(ctx context.Context) error {
	found, err := e.api.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", Label))})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range found {
		old := time.Since(time.Unix(c.Created, 0)) > abandoned
		if c.Labels[Label] != e.owner && !old || e.uses(c.Names) {
			continue
		}
		err = errors.Join(err, e.remove(ctx, c.ID))
	}
	return errors.Join(err, e.sweepImages(ctx))
}

// uses reports whether an extraction is at the container of these names, each of which has a slash before it.
func (e *Engine) uses(names []string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(names, func(name string) bool { return e.using[strings.TrimPrefix(name, "/")] })
}

// look tells what a container has at a path.
func (e *Engine) look(ctx context.Context, name, path string) (rootfs.Entry, error) {
	stat, err := e.api.ContainerStatPath(ctx, name, path)
	switch {
	case errdefs.IsNotFound(err):
		return e.missing(ctx, name)
	case err != nil:
		return e.unclear(ctx, name, path, err)
	case stat.Mode.IsRegular():
		return rootfs.Entry{Kind: rootfs.File, Size: stat.Size}, nil
	case stat.Mode.IsDir():
		return rootfs.Entry{Kind: rootfs.Directory}, nil
	case stat.Mode&fs.ModeSymlink == 0:
		return rootfs.Entry{Kind: rootfs.Special}, nil
	}
	in, header, err := e.open(ctx, name, path) // stat says where it ends, not where it leads
	if err != nil {
		return rootfs.Entry{}, err
	}
	return rootfs.Entry{Kind: rootfs.Link, Link: header.Linkname}, in.Close()
}

// unclear tells what an engine has at a path that it answered a question for by an error without words.
func (e *Engine) unclear(ctx context.Context, name, path string, first error) (rootfs.Entry, error) {
	in, _, err := e.open(ctx, name, path)
	if err == nil {
		in.Close()
		err = fmt.Errorf("look for %s: %w", path, first)
	}
	if strings.Contains(err.Error(), "too many links") {
		return rootfs.Entry{Kind: rootfs.Link, Link: path}, nil // it follows them itself, in vain
	}
	return rootfs.Entry{}, err
}

// missing tells a path that is not there from a container that somebody removed.
func (e *Engine) missing(ctx context.Context, name string) (rootfs.Entry, error) {
	if _, err := e.api.ContainerInspect(ctx, name); err != nil {
		return rootfs.Entry{}, fmt.Errorf("look into a container: %w", err)
	}
	return rootfs.Entry{Kind: rootfs.Absent}, nil
}

// copy writes a file of a container to w.
func (e *Engine) copy(ctx context.Context, name, path string, w io.Writer, limit int64) error {
	in, header, err := e.open(ctx, name, path)
	if err != nil {
		return err
	}
	defer in.Close()
	if header.Typeflag != tar.TypeReg || header.Size > limit { // it is none of ours then
		return fmt.Errorf("copy %s: it changed while it was read", path)
	}
	if _, err := io.CopyN(w, in, header.Size); err != nil {
		return fmt.Errorf("copy %s: %w", path, err)
	}
	return nil
}

// entry is the one of an archive.
type entry struct {
	*tar.Reader
	io.Closer
}

// open reads the first entry of the archive that an engine makes of a path.
func (e *Engine) open(ctx context.Context, name, path string) (entry, *tar.Header, error) {
	archive, _, err := e.api.CopyFromContainer(ctx, name, path)
	if err != nil {
		return entry{}, nil, fmt.Errorf("copy %s: %w", path, err)
	}
	t := tar.NewReader(archive)
	header, err := t.Next()
	if err != nil {
		archive.Close()
		return entry{}, nil, fmt.Errorf("copy %s: %w", path, err)
	}
	return entry{Reader: t, Closer: archive}, header, nil
}
