package builder

import (
	"context"
	"errors"
	"fmt"
	"os"

	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/oci"
)

// oci plans an image from a file of an image on the disk of this machine. It is known by the digest of that image, and the
// path of the file.
func (s *sources) oci(o *fulmarv1.OciSource) (plan, error) {
	layout, image, err := s.open(o)
	if err != nil {
		return plan{}, err
	}
	p := plan{kind: "oci", key: keyOf("oci", image.Digest, o.GetPath()), facts: &fulmarv1.Build{ImageDigest: image.Digest}}
	p.make = func(ctx context.Context, l *log, out *os.File) (err error) {
		layout, now, err := s.open(o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, layout.Close()) }()
		if now.Digest != image.Digest {
			return fmt.Errorf("layout %s: its image changed while it was read", o.GetLayout())
		}
		l.sayf("take %s out of image %s", o.GetPath(), image.Digest)
		return layout.Extract(ctx, now, o.GetPath(), out, s.config.MaxImage)
	}
	return p, layout.Close()
}

// open opens a layout and finds its image.
func (s *sources) open(o *fulmarv1.OciSource) (*oci.Layout, oci.Image, error) {
	root, inside, err := s.below(o.GetLayout())
	if err != nil {
		return nil, oci.Image{}, err
	}
	defer root.Close()
	layout, err := oci.Open(root, inside)
	if err != nil {
		return nil, oci.Image{}, fmt.Errorf("layout %s: %w", o.GetLayout(), err)
	}
	image, err := layout.Resolve(o.GetReference())
	if err != nil {
		return nil, oci.Image{}, errors.Join(fmt.Errorf("layout %s: %w", o.GetLayout(), err), layout.Close())
	}
	return layout, image, nil
}
