package docker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"fulmar/messages"
)

// The names of what builds leave in an engine for a while.
const (
	heldImages = "fulmar-build" // images that were built, until they are discarded
	keptImages = "fulmar-cache" // what the stages of classic builds ended with, for the next
)

// maxKept is how many names of builds the classic builder keeps something of.
const maxKept = 16

// hold makes a reference for an image that is to be built, which says who builds it and since when.
func (e *Engine) hold() string {
	ref := fmt.Sprintf("%s:%s-%d-%s", heldImages, digest(e.owner), time.Now().Unix(), strings.ToLower(rand.Text()))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held[ref] = true
	return ref
}

// drop lets go of an image that was to be built. What cannot be removed now is removed by the next sweep.
func (e *Engine) drop(ctx context.Context, ref string) error {
	e.mu.Lock()
	delete(e.held, ref)
	e.mu.Unlock()
	return e.untag(ctx, ref)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// untag takes a reference away, and its image if it was the last.
func (e *Engine) untag(ctx context.Context, ref string) error {
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_, err := e.api.ImageRemove(whole, ref, image.RemoveOptions{PruneChildren: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove docker image %s: %w", ref, err)
	}
	return nil
}

// keep gives the images that the stages of a build ended with references of its name, so that nobody takes them for
// rubbish, and takes those of the builds before away. Names that were not built for long give way.
func (e *Engine) keep(ctx context.Context, name string, stages []string) error {
	name = digest(name)
	now := map[string]bool{}
	for i, id := range stages {
		if id == "" {
			continue
		}
		ref := fmt.Sprintf("%s:%s-%d-%s", keptImages, name, i, strings.TrimPrefix(id, "sha256:")[:12])
		now[ref] = true
		if err := e.api.ImageTag(ctx, id, ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("keep the layers of a build: %w", err)
		}
	}
	kept, err := e.references(ctx, keptImages)
	if err != nil {
		return err
	}
	old := map[string][]string{} // references of other names
	for _, ref := range kept {
		of, _, _ := strings.Cut(ref.tag, "-")
		switch {
		case of != name:
			old[of] = append(old[of], ref.String())
		case !now[ref.String()]:
			err = errors.Join(err, e.untag(ctx, ref.String()))
		}
	}
	return errors.Join(err, e.crowdOut(ctx, old))
}

// crowdOut takes away what is kept of the names that were built least lately.
func (e *Engine) crowdOut(ctx context.Context, names map[string][]string) error {
	if len(names) < maxKept {
		return nil
	}
	type used struct {
		name string
		last time.Time
	}
	var all []used
	for name, refs := range names {
		u := used{name: name}
		for _, ref := range refs {
			i, err := e.api.ImageInspect(ctx, ref)
			if err == nil && i.Metadata.LastTagTime.After(u.last) {
				u.last = i.Metadata.LastTagTime
			}
		}
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b used) int { return b.last.Compare(a.last) })
	var err error
	for _, u := range all[maxKept-1:] {
		for _, ref := range names[u.name] {
			err = errors.Join(err, e.untag(ctx, ref))
		}
	}
	return err
}

// tagged is one reference of an image.
type tagged struct{ repository, tag string }

func (t tagged) String() string { return t.repository + ":" + t.tag }

// references lists the references of images in a repository.
func (e *Engine) references(ctx context.Context, repository string) ([]tagged, error) {
	images, err := e.api.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", repository))})
	if err != nil {
		return nil, fmt.Errorf("list docker images: %w", err)
	}
	var found []tagged
	for _, i := range images {
		for _, ref := range i.RepoTags {
			if r, tag, ok := strings.Cut(ref, ":"); ok && r == repository {
				found = append(found, tagged{r, tag})
			}
		}
	}
	return found, nil
}

// sweepImages removes the images that an earlier run of this builder built and did not discard, and those that any
// builder left long ago.
func (e *Engine) sweepImages(ctx context.Context) error {
	held, err := e.references(ctx, heldImages)
	if err != nil {
		return err
	}
	for _, ref := range held {
		words := strings.Split(ref.tag, "-")
		if len(words) != 3 {
			continue
		}
		since, _ := strconv.ParseInt(words[1], 10, 64)
		if e.holds(ref.String()) {
			continue
		}
		if words[0] == digest(e.owner) || time.Since(time.Unix(since, 0)) > 2*messages.MaxBuildLimit {
			err = errors.Join(err, e.untag(ctx, ref.String()))
		}
	}
	return errors.Join(err, e.sweepUntagged(ctx))
}

func (e *Engine) holds(ref string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held[ref]
}

// sweepUntagged removes images of this builder that it was killed before it could name: no classic build runs that will.
func (e *Engine) sweepUntagged(ctx context.Context) error {
	e.mu.Lock()
	busy := e.classics > 0
	e.mu.Unlock()
	if busy {
		return nil
	}
	images, err := e.api.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", Label+"="+e.owner), filters.Arg("dangling", "true"))})
	if err != nil {
		return fmt.Errorf("list docker images: %w", err)
	}
	for _, i := range images {
		err = errors.Join(err, e.untag(ctx, i.ID))
	}
	return err
}

// classic counts the classic builds that run.
func (e *Engine) classic(more int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.classics += more
}

// PruneCache removes what BuildKit keeps for later builds beyond a number of bytes, what was used least lately first: of
// everybody's builds, since an engine has one such store.
func (e *Engine) PruneCache(ctx context.Context, keep int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := e.api.BuildCachePrune(ctx, build.CachePruneOptions{All: true, KeepStorage: keep}); err != nil {
		return fmt.Errorf("prune the build cache of the docker engine: %w", err)
	}
	return nil
}
