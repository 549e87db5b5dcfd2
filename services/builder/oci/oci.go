// Package oci gets files out of images on the disk, without an engine: OCI layouts, tar archives of them, and what docker
// save writes.
//
// It unpacks nothing to the disk and holds no file in memory: it reads the layers once to know what is where, and the
// one that has the file a second time.
//
// The invariant it guards: what it gives is what the digests of the image say, and an image, however hostile, costs no
// more than the bounds of this package.
package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"fulmar/services/builder/rootfs"
)

const (
	maxLayers = 512
	maxNested = 4 // indexes within one another
)

// Layout is a layout or an archive of images.
type Layout struct {
	files    files
	unpacked int64 // bytes of an image at most
	nodes    int   // files of an image at most
}

// Open opens a layout or an archive below a root, which no link leads out of. Its refusals, like those of what it opens,
// do not name it.
func Open(root *os.Root, name string) (*Layout, error) {
	f, err := openFiles(root, name)
	if err != nil {
		return nil, err
	}
	return &Layout{files: f, unpacked: maxUnpacked, nodes: maxNodes}, nil
}

// Close closes the layout.
func (l *Layout) Close() error { return l.files.Close() }

// Image is an image of a layout.
type Image struct {
	// Digest names its content: of its manifest, or of its configuration in an archive of docker save that has no manifest.
	Digest string

	layers []blob // from the lowest
}

// Resolve finds the image of a reference, which is a tag or a digest. Empty: the only one there is.
func (l *Layout) Resolve(ref string) (Image, error) {
	text, err := l.text(ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return l.saved(ref)
	}
	if err != nil {
		return Image{}, err
	}
	index, err := parseIndex(ocispec.ImageIndexFile, text)
	if err != nil {
		return Image{}, err
	}
	d, err := choose(index.Manifests, ref)
	if err != nil {
		return Image{}, err
	}
	for range maxNested {
		b, err := blobOf(d)
		if err != nil {
			return Image{}, err
		}
		if text, err = l.readSmall(b); err != nil {
			return Image{}, err
		}
		if !isIndex(d.MediaType) {
			return manifest(d, text)
		}
		if index, err = parseIndex(b.name, text); err != nil {
			return Image{}, err
		}
		if d, err = platform(index.Manifests); err != nil {
			return Image{}, err
		}
	}
	return Image{}, refuse("it has more than %d indexes within one another", maxNested)
}

// text reads a file that no digest is known of.
func (l *Layout) text(name string) ([]byte, error) {
	f, _, err := l.files.open(name)
	if err != nil {
		return nil, fmt.Errorf("open file %s: %w", name, err)
	}
	defer f.Close()
	return readText(name, f)
}

func parseIndex(name string, text []byte) (ocispec.Index, error) {
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return index, refuse("%s: %w", name, err)
	}
	return index, nil
}

// blobOf gives the file of a descriptor.
func blobOf(d ocispec.Descriptor) (blob, error) {
	if err := d.Digest.Validate(); err != nil {
		return blob{}, refuse("digest %.100q: %w", d.Digest, err)
	}
	return blob{name: path.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()), digest: d.Digest, size: d.Size}, nil
}

func manifest(d ocispec.Descriptor, text []byte) (Image, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Image{}, refuse("manifest %s: %w", d.Digest, err)
	}
	if len(m.Layers) > maxLayers {
		return Image{}, refuse("manifest %s has %d layers, more than %d", d.Digest, len(m.Layers), maxLayers)
	}
	i := Image{Digest: string(d.Digest)}
	for _, layer := range m.Layers {
		if !isLayer(layer.MediaType) {
			return Image{}, refuse("manifest %s has a layer of type %.100q, which is no archive of files that we can read", d.Digest, layer.MediaType)
		}
		b, err := blobOf(layer)
		if err != nil {
			return Image{}, err
		}
		i.layers = append(i.layers, b)
	}
	return i, nil
}

// isLayer reports whether a media type is one of an archive of files. How it is compressed shows in its first bytes.
func isLayer(mediaType string) bool {
	mediaType, compression, _ := strings.Cut(mediaType, "+")
	if compression != "" && compression != "gzip" && compression != "zstd" {
		return false
	}
	switch mediaType {
	case ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return true
	}
	return false
}

// Extract writes the file at a path of an image to w. It refuses a path that leads to no file of at most limit bytes.
func (l *Layout) Extract(ctx context.Context, i Image, name string, w io.Writer, limit int64) error {
	left := l.unpacked
	t := newTree(l.nodes)
	for number, b := range i.layers {
		if err := l.apply(ctx, t, number, b, &left); err != nil {
			return err
		}
	}
	found, err := rootfs.Find(name, limit, t.look)
	if err != nil {
		return err
	}
	n := t.find(found)
	return l.copy(ctx, i.layers[n.at.layer], n, w)
}

// apply reads a layer to its end and applies it to a tree.
func (l *Layout) apply(ctx context.Context, t *tree, number int, b blob, left *int64) error {
	return l.each(ctx, b, left, func(_ *layer, entry int, h *tar.Header) error {
		if err := t.add(place{number, entry}, h); err != nil {
			return refuse("layer %s: %w", b.name, err)
		}
		return nil
	})
}

// copy writes the content of a file to w, and reads on to the end of its layer to see that it is still what it was.
func (l *Layout) copy(ctx context.Context, b blob, n *node, w io.Writer) error {
	left := l.unpacked
	return l.each(ctx, b, &left, func(y *layer, entry int, h *tar.Header) error {
		if entry != n.at.entry {
			return nil
		}
		if h.Typeflag == tar.TypeDir || h.Size != n.Size {
			return fmt.Errorf("layer %s changed while it was read", b.name)
		}
		return y.write(w, h.Size)
	})
}

// each reads a layer to its end and calls f with each of its entries, whose content can be read then.
func (l *Layout) each(ctx context.Context, b blob, left *int64, f func(y *layer, entry int, h *tar.Header) error) error {
	y, err := l.openLayer(ctx, b, left)
	if err != nil {
		return err
	}
	defer func() { _ = y.done() }()
	for entry := 0; ; entry++ {
		h, err := y.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(y, entry, h); err != nil {
			return err
		}
	}
}

// write writes the content of an entry to w.
func (y *layer) write(w io.Writer, size int64) error {
	to := &sink{to: w}
	_, err := io.CopyN(to, y, size)
	switch {
	case err == nil:
		return nil
	case to.broken != nil:
		return fmt.Errorf("write: %w", to.broken)
	}
	return y.fault(err)
}

// sink tells an error of writing from one of reading.
type sink struct {
	to     io.Writer
	broken error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	s.broken = err
	return n, err
}
