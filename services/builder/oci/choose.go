package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// containerdName is the annotation under which docker save and containerd write the whole name of an image.
const containerdName = "io.containerd.image.name"

// media types of Docker that mean what those of OCI do.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerList
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

// choose finds the image that a reference names in an index: a tag or a whole name, or a digest. The empty reference
// names the only image there is.
func choose(all []ocispec.Descriptor, ref string) (ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	for _, d := range all {
		if (isIndex(d.MediaType) || isManifest(d.MediaType)) && fits(d.Platform) && (ref == "" || named(d, ref)) {
			if !slices.ContainsFunc(found, func(f ocispec.Descriptor) bool { return f.Digest == d.Digest }) {
				found = append(found, d)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return ocispec.Descriptor{}, refuse("reference %q names %d images: name one of %s", ref, len(found), list(found))
	case ref == "":
		return ocispec.Descriptor{}, absent("it has no image for linux/amd64")
	}
	return ocispec.Descriptor{}, absent("it has no image %s, only %s", ref, list(all))
}

// named reports whether a reference is one for an image.
func named(d ocispec.Descriptor, ref string) bool {
	if string(d.Digest) == ref {
		return true
	}
	for _, name := range []string{d.Annotations[ocispec.AnnotationRefName], d.Annotations[containerdName]} {
		if sameName(name, ref) {
			return true
		}
	}
	return false
}

// sameName reports whether two names of an image are the same: www is docker.io/library/www:latest.
func sameName(name, ref string) bool {
	if name == "" || name == ref {
		return name != ""
	}
	a, err := reference.ParseDockerRef(name)
	if err != nil {
		return false
	}
	b, err := reference.ParseDockerRef(ref)
	return err == nil && a.String() == b.String()
}

// fits reports whether an image is for the machines that unikernels run on, as far as it says.
func fits(p *ocispec.Platform) bool {
	return p == nil || p.OS == "linux" && p.Architecture == "amd64"
}

// platform finds the image for our machines in an index of one for each platform.
func platform(all []ocispec.Descriptor) (ocispec.Descriptor, error) {
	for _, sure := range []bool{true, false} {
		for _, d := range all {
			if (isIndex(d.MediaType) || isManifest(d.MediaType)) && fits(d.Platform) && (d.Platform != nil) == sure {
				return d, nil
			}
		}
	}
	var others []string
	for _, d := range all {
		if d.Platform != nil {
			others = append(others, d.Platform.OS+"/"+d.Platform.Architecture)
		}
	}
	return ocispec.Descriptor{}, absent("it has no image for linux/amd64, only for %s", strings.Join(others, ", "))
}

// list names images for people.
func list(all []ocispec.Descriptor) string {
	const most = 10
	var names []string
	for _, d := range all {
		name := d.Annotations[containerdName]
		if name == "" {
			name = d.Annotations[ocispec.AnnotationRefName]
		}
		if name == "" {
			name = string(d.Digest)
		}
		if len(names) == most {
			names = append(names, fmt.Sprintf("%d more", len(all)-most))
			break
		}
		names = append(names, fmt.Sprintf("%.200s", name))
	}
	return strings.Join(names, ", ")
}

func absent(format string, args ...any) error {
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, format, args...)
}

func refuse(format string, args ...any) error {
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, format, args...)
}
