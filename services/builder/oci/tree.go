package oci

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"

	"fulmar/services/builder/rootfs"
)

// Bounds of what an image may make us remember.
const (
	maxNodes = 500_000 // files and directories of all layers
	maxPath  = 4096    // bytes of a path or a link, as on Linux
)

// How a layer says that something below it is gone.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq" // all that the layers below have in this directory
)

// place is where the content of a file is: the entry of a layer, both counted from 0.
type place struct{ layer, entry int }

// node is a file or a directory of an image.
type node struct {
	rootfs.Entry
	layer    int // that put it here
	at       place
	children map[string]*node // of a directory
}

func (n *node) child(name string) *node { return n.children[name] }

// tree is the file system of an image, of which the layers up to one are applied.
type tree struct {
	root  *node
	nodes int
	limit int
}

func newTree(limit int) *tree {
	return &tree{root: &node{Entry: rootfs.Entry{Kind: rootfs.Directory}}, limit: limit}
}

// look is a [rootfs.Lookup].
func (t *tree) look(name string) (rootfs.Entry, error) {
	if n := t.find(name); n != nil {
		return n.Entry, nil
	}
	return rootfs.Entry{}, nil
}

// find gives what is at a clean path. It follows no link.
func (t *tree) find(name string) *node {
	n := t.root
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		if n = n.child(part); n == nil {
			return nil
		}
	}
	return n
}

// add applies an entry of a layer.
func (t *tree) add(at place, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // it is about the archive
	}
	name, err := within(h.Name)
	if err != nil {
		return err
	}
	if name == "/" {
		return nil
	}
	dir, base := path.Split(name)
	parent, err := t.directory(at.layer, dir)
	if err != nil {
		return err
	}
	if base == opaque {
		prune(parent, at.layer)
		return nil
	}
	if gone, ok := strings.CutPrefix(base, whiteout); ok {
		if n := parent.child(gone); n != nil && !keep(n, at.layer) {
			delete(parent.children, gone)
		}
		return nil
	}
	return t.put(parent, base, at, h)
}

// within cleans the name of an entry.
func within(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("entry %.64q... has a name of more than %d bytes", name, maxPath)
	}
	if clean := path.Clean(strings.TrimLeft(name, "/")); clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("entry %q is not in the image", name)
	}
	return path.Clean("/" + name), nil
}

// directory gives a directory, and makes what there is not.
func (t *tree) directory(layer int, name string) (*node, error) {
	n := t.root
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if part == "" {
			continue
		}
		next := n.child(part)
		if next == nil || next.Kind != rootfs.Directory {
			next = &node{Entry: rootfs.Entry{Kind: rootfs.Directory}, layer: layer}
			if err := t.insert(n, part, next); err != nil {
				return nil, err
			}
		}
		n = next
	}
	return n, nil
}

// put makes an entry what a directory has under a name.
func (t *tree) put(parent *node, name string, at place, h *tar.Header) error {
	n := &node{layer: at.layer, at: at}
	switch h.Typeflag {
	case tar.TypeDir:
		if old := parent.child(name); old != nil && old.Kind == rootfs.Directory {
			old.layer = at.layer
			return nil
		}
		n.Kind = rootfs.Directory
	case tar.TypeReg, tar.TypeGNUSparse:
		n.Kind, n.Size = rootfs.File, h.Size
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPath {
			return fmt.Errorf("entry %q is a link of more than %d bytes", h.Name, maxPath)
		}
		n.Kind, n.Link = rootfs.Link, strings.Clone(h.Linkname)
	case tar.TypeLink:
		to, err := within(h.Linkname)
		if err != nil {
			return err
		}
		target := t.find(to)
		if target == nil || target.Kind == rootfs.Directory {
			return fmt.Errorf("entry %q is a hard link to %q, which is no file", h.Name, h.Linkname)
		}
		n.Entry, n.at = target.Entry, target.at
	default:
		n.Kind = rootfs.Special
	}
	return t.insert(parent, name, n)
}

func (t *tree) insert(parent *node, name string, n *node) error {
	if t.nodes++; t.nodes > t.limit {
		return fmt.Errorf("the image has more than %d files", t.limit)
	}
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	parent.children[strings.Clone(name)] = n // the header holds a longer string
	return nil
}

// prune removes from a directory what the layers below one put there.
func prune(n *node, layer int) {
	for name, child := range n.children {
		if !keep(child, layer) {
			delete(n.children, name)
		}
	}
}

// keep prunes a node, and reports whether the layer has it itself.
func keep(n *node, layer int) bool {
	prune(n, layer)
	return n.layer == layer || len(n.children) > 0
}
