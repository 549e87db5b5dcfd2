package oci

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// savedImage is an image in the manifest.json that docker save writes.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// saved finds an image in an archive as docker save wrote it before it wrote layouts. The configuration has the digests
// of what is in the layers.
func (l *Layout) saved(ref string) (Image, error) {
	text, err := l.text("manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, refuse("it is no image: it has neither index.json nor manifest.json")
	}
	if err != nil {
		return Image{}, err
	}
	var all []savedImage
	if err := json.Unmarshal(text, &all); err != nil {
		return Image{}, refuse("manifest.json: %w", err)
	}
	s, err := chooseSaved(all, ref)
	if err != nil {
		return Image{}, err
	}
	if text, err = l.text(s.Config); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Image{}, refuse("it lacks the file %.200s", s.Config)
		}
		return Image{}, err
	}
	id := digest.FromBytes(text)
	if hex := strings.TrimSuffix(path.Base(s.Config), ".json"); len(hex) == 64 && hex != id.Encoded() {
		return Image{}, refuse("%.200s is not what its name says", s.Config)
	}
	var config ocispec.Image
	if err := json.Unmarshal(text, &config); err != nil {
		return Image{}, refuse("%.200s: %w", s.Config, err)
	}
	if n := len(s.Layers); n != len(config.RootFS.DiffIDs) || n > maxLayers {
		return Image{}, refuse("manifest.json has %d layers, and the configuration of the image %d", n, len(config.RootFS.DiffIDs))
	}
	i := Image{Digest: id.String()}
	for n, name := range s.Layers {
		i.layers = append(i.layers, blob{name: name, digest: config.RootFS.DiffIDs[n], size: -1, unpacked: true})
	}
	return i, nil
}

// chooseSaved gives images the form of an index, to choose in it.
func chooseSaved(all []savedImage, ref string) (savedImage, error) {
	var descriptors []ocispec.Descriptor
	at := map[digest.Digest]savedImage{}
	for _, s := range all {
		id := digest.Digest("sha256:" + strings.TrimSuffix(path.Base(s.Config), ".json"))
		at[id] = s
		tags := s.RepoTags
		if len(tags) == 0 {
			tags = []string{""} // it goes by its id
		}
		for _, tag := range tags {
			descriptors = append(descriptors, ocispec.Descriptor{
				MediaType: dockerManifest, Digest: id, Annotations: map[string]string{containerdName: tag},
			})
		}
	}
	d, err := choose(descriptors, ref)
	return at[d.Digest], err
}
