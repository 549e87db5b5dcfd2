// Package rootfs finds a file in the file system of an image, which may be hostile. It is pure: who asks tells what is
// at a path.
//
// The invariant it guards: links are followed within the image and never out of it.
package rootfs

import (
	"fmt"
	"path"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// What Linux allows.
const (
	maxLinks = 40
	maxPath  = 4096 // bytes
)

// Kind is what is at a path.
type Kind string

// What is at a path.
const (
	Absent    Kind = ""
	File      Kind = "file"
	Directory Kind = "directory"
	Link      Kind = "link" // a symbolic one
	Special   Kind = "special"
)

// Entry is what an image has at a path.
type Entry struct {
	Kind Kind
	Size int64  // of a file, in bytes
	Link string // where a link leads, as it says
}

// Lookup tells what an image has at a path, which is absolute and clean. The parents of the path are directories.
type Lookup func(path string) (Entry, error)

// Find gives the path of the file that name leads to, with no link in it. It refuses what is no file of at most limit bytes.
func Find(name string, limit int64, look Lookup) (string, error) {
	at, rest, links := "/", path.Clean("/"+name), 0
	for {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		switch part {
		case "":
			return "", refuse(name, at, "is a directory, not a file")
		case ".":
			continue
		case "..":
			if at == "/" {
				return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%s leads out of the image by a link", name)
			}
			at = path.Dir(at)
			continue
		}
		here := path.Join(at, part)
		entry, err := look(here)
		if err != nil {
			return "", err
		}
		last := strings.Trim(rest, "/") == ""
		switch {
		case entry.Kind == Absent:
			return "", absent(name, here, rest)
		case entry.Kind == Link:
			if links++; links > maxLinks {
				return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%s leads through more than %d links of the image", name, maxLinks)
			}
			if strings.HasPrefix(entry.Link, "/") {
				at = "/"
			}
			if rest = entry.Link + "/" + rest; len(rest) > maxPath {
				return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%s leads through a path of more than %d bytes of the image", name, maxPath)
			}
		case entry.Kind == Directory:
			at = here
		case !last:
			return "", absent(name, here, rest)
		case entry.Kind == Special:
			return "", refuse(name, here, "is a device, a pipe or a socket, not a file")
		case entry.Size > limit:
			return "", refuse(name, here, fmt.Sprintf("has %d bytes, more than %d", entry.Size, limit))
		default:
			return here, nil
		}
	}
}

func absent(name, here, rest string) error {
	missing := path.Join(here, rest)
	if missing == path.Clean("/"+name) {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "the image has no file %s", name)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "the image has no file %s, to which its link %s leads", missing, name)
}

func refuse(name, here, what string) error {
	if here != path.Clean("/"+name) {
		name = fmt.Sprintf("%s, to which its link %s leads,", here, name)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_IMAGE, "%s of the image %s", name, what)
}
