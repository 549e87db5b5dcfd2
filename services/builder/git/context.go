package git

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const (
	maxEntries = 1 << 20
	maxRead    = 1 << 20 // bytes of a file that is read as a whole
)

// File is a file that is added to the context of a build.
type File struct {
	Name string
	Text []byte
}

// Context is what of a commit is the context of a build.
type Context struct {
	Directory string                 // of the repository, links within it followed; empty: its root
	Keep      func(path string) bool // which of its files, by their paths in the directory; nil: all
	Add       []File                 // put in the place of the repository's own
}

// entry is one file of a commit.
type entry struct {
	mode   string // 100644, 100755, 120000 for a link, 160000 for a submodule
	object string
	size   int64
	path   string // in the directory
}

// ReadFile reads a file of the commit by its path in the repository; links within it are followed. The error is
// [fs.ErrNotExist] for one that is not there or no file, as it is where a link leads out of the repository.
func (k *Checkout) ReadFile(ctx context.Context, name string) ([]byte, error) {
	found, err := k.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if found.kind != "blob" {
		return nil, fmt.Errorf("%s in commit %s: it is no file: %w", name, k.commit, fs.ErrNotExist)
	}
	if found.size > maxRead {
		return nil, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "repository %s: %s has more than %d bytes", k.repository.URL, name, maxRead)
	}
	text, err := k.session.git(ctx, "cat-file", "blob", found.object)
	if err != nil {
		return nil, k.session.explain(ctx, "read "+name, err)
	}
	return text, nil
}

// found is what a path of a commit leads to.
type found struct {
	object string
	kind   string // tree or blob
	size   int64
}

// find looks up a path of the commit.
func (k *Checkout) find(ctx context.Context, name string) (found, error) {
	within := path.Clean(name)
	if within == "." {
		within = ""
	}
	cmd := k.session.command(ctx, "cat-file", "--batch-check", "--follow-symlinks")
	var said capped
	cmd.Stdin, cmd.Stderr = strings.NewReader(k.commit+":"+within+"\n"), &said
	out, err := cmd.Output()
	if err != nil {
		return found{}, k.session.explain(ctx, "look for "+name, k.session.failed(err, said))
	}
	line, _, _ := strings.Cut(string(out), "\n")
	words := strings.Split(line, " ")
	switch {
	case strings.HasPrefix(line, "symlink "):
		return found{}, fmt.Errorf("%s in commit %s: it is a link out of the repository: %w", name, k.commit, fs.ErrNotExist)
	case strings.HasPrefix(line, "loop "):
		return found{}, fmt.Errorf("%s in commit %s: its links lead in a circle: %w", name, k.commit, fs.ErrNotExist)
	case len(words) == 3 && messages.IsCommit(words[0]):
		size, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil {
			return found{}, fmt.Errorf("look for %s: %w", name, err)
		}
		return found{object: words[0], kind: words[1], size: size}, nil
	}
	return found{}, fmt.Errorf("%s in commit %s: %w", name, k.commit, fs.ErrNotExist)
}

// Tar writes a context as a tar archive, the same bytes for the same commit. Submodules are in it. A directory that is
// not there is a refusal, as is a context of more bytes than the client takes.
func (k *Checkout) Tar(ctx context.Context, c Context, w io.Writer) error {
	root, err := k.find(ctx, c.Directory)
	if err == nil && root.kind != "tree" {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s: directory %s in commit %s is a file", k.repository.URL, c.Directory, k.commit)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "repository %s: directory %w", k.repository.URL, err)
	}
	if err != nil {
		return err
	}
	a := &archive{tar: tar.NewWriter(w), keep: c.Keep, added: map[string]bool{}, left: k.client.config.MaxSize, made: map[string]bool{".": true}}
	if a.keep == nil {
		a.keep = func(string) bool { return true }
	}
	for _, f := range c.Add {
		a.added[f.Name] = true
		if err := a.add(k, entry{mode: "100644", size: int64(len(f.Text)), path: f.Name}, bytes.NewReader(f.Text)); err != nil {
			return err
		}
	}
	if err := k.write(ctx, a, root.object, path.Clean(c.Directory), "."); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("write the context of the build: %w", err)
	}
	return nil
}

// write puts the files of a tree into the archive: from is where it lies in the repository, to in the archive.
func (k *Checkout) write(ctx context.Context, a *archive, tree, from, to string) error {
	entries, err := k.list(ctx, a, tree, to)
	if err != nil {
		return err
	}
	var modules []entry
	blobs, err := k.open(ctx)
	if err != nil {
		return err
	}
	defer blobs.close()
	for _, e := range entries {
		if e.mode == "160000" {
			modules = append(modules, e)
			continue
		}
		content, err := blobs.get(e)
		if err == nil {
			err = a.add(k, e, content)
		}
		if err != nil {
			return k.session.explain(ctx, "read "+e.path, err)
		}
	}
	for _, e := range modules {
		inside := path.Join(from, strings.TrimPrefix(strings.TrimPrefix(e.path, to), "/"))
		if err := k.submodule(ctx, a, e, inside); err != nil {
			return err
		}
	}
	return nil
}

// list reads what a tree has, without what is left out.
func (k *Checkout) list(ctx context.Context, a *archive, tree, to string) ([]entry, error) {
	cmd := k.session.command(ctx, "ls-tree", "-r", "-l", "-z", "--full-tree", tree)
	var said capped
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("list commit %s: %w", k.commit, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("list commit %s: %w", k.commit, err)
	}
	var entries []entry
	scan := bufio.NewScanner(out)
	scan.Split(zeros)
	for scan.Scan() && err == nil {
		var e entry
		if e, err = parseEntry(scan.Text()); err != nil {
			break
		}
		e.path = path.Join(to, e.path)
		if a.added[e.path] || e.mode != "160000" && !a.keep(e.path) {
			continue
		}
		entries = append(entries, e)
		err = a.take(e)
	}
	if err = errors.Join(err, scan.Err()); err != nil {
		_ = cmd.Cancel() // it is waited for
		_ = cmd.Wait()
		return nil, fmt.Errorf("repository %s: list commit %s: %w", k.repository.URL, k.commit, err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, k.session.explain(ctx, "list commit "+k.commit, k.session.failed(err, said))
	}
	return entries, nil
}

// zeros splits at zero bytes.
func zeros(data []byte, end bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return i + 1, data[:i], nil
	}
	if end && len(data) > 0 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return 0, nil, nil
}

// parseEntry reads an entry of git ls-tree -l: mode, type, object, size, and after a tab the path.
func parseEntry(line string) (entry, error) {
	facts, name, ok := strings.Cut(line, "\t")
	words := strings.Fields(facts)
	if !ok || len(words) != 4 || !messages.IsCommit(words[2]) {
		return entry{}, fmt.Errorf("%q is not an entry", line)
	}
	e := entry{mode: words[0], object: words[2], path: name}
	if words[3] != "-" {
		size, err := strconv.ParseInt(words[3], 10, 64)
		if err != nil || size < 0 {
			return entry{}, fmt.Errorf("%q is not an entry", line)
		}
		e.size = size
	}
	if !fs.ValidPath(name) {
		return entry{}, messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "%q is not the path of a file", name)
	}
	return e, nil
}

// archive is the context on its way.
type archive struct {
	tar     *tar.Writer
	keep    func(string) bool
	added   map[string]bool
	made    map[string]bool // directories
	left    int64           // bytes
	entries int
	modules int
}

// take counts an entry, and refuses what is too much before anything of it is read.
func (a *archive) take(e entry) error {
	a.left -= e.size
	a.entries++
	if e.mode == "160000" {
		a.modules++
	}
	switch {
	case a.left < 0 || a.entries > maxEntries:
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "its files are more than this builder takes")
	case a.modules > maxModules:
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_BUILD, "it has more than %d submodules", maxModules)
	}
	return nil
}

// add writes an entry after the directories that it lies in.
func (a *archive) add(k *Checkout, e entry, content io.Reader) error {
	if err := a.directory(k, path.Dir(e.path)); err != nil {
		return err
	}
	h := &tar.Header{Name: e.path, Mode: 0o644, Size: e.size, ModTime: k.time, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	switch e.mode {
	case "100755":
		h.Mode = 0o755
	case "120000":
		target, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, string(target), 0, 0o777
		content = strings.NewReader("")
	}
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the context of the build: %w", err)
	}
	if _, err := io.Copy(a.tar, content); err != nil {
		return fmt.Errorf("write the context of the build: %w", err)
	}
	return nil
}

func (a *archive) directory(k *Checkout, name string) error {
	if a.made[name] {
		return nil
	}
	if err := a.directory(k, path.Dir(name)); err != nil {
		return err
	}
	a.made[name] = true
	if err := a.tar.WriteHeader(&tar.Header{Name: name + "/", Mode: 0o755, ModTime: k.time, Typeflag: tar.TypeDir, Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("write the context of the build: %w", err)
	}
	return nil
}

// blobs is a git that hands out objects.
type blobs struct {
	cancel context.CancelFunc
	wait   func() error
	in     io.WriteCloser
	out    *bufio.Reader
	rest   *io.LimitedReader // of the last one
}

func (k *Checkout) open(ctx context.Context) (*blobs, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := k.session.command(ctx, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("read commit %s: %w", k.commit, err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("read commit %s: %w", k.commit, err)
	}
	return &blobs{cancel: cancel, wait: cmd.Wait, in: in, out: bufio.NewReader(out), rest: &io.LimitedReader{}}, nil
}

// get gives the content of an entry, which is read before the next is asked for.
func (b *blobs) get(e entry) (io.Reader, error) {
	if _, err := io.Copy(io.Discard, b.rest); err != nil {
		return nil, err
	}
	if b.rest.R != nil {
		if _, err := b.out.Discard(1); err != nil { // the end of the line
			return nil, err
		}
	}
	if _, err := fmt.Fprintln(b.in, e.object); err != nil {
		return nil, err
	}
	line, err := b.out.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if want := fmt.Sprintf("%s blob %d\n", e.object, e.size); line != want {
		return nil, fmt.Errorf("git hands out %q in the place of %q", line, want)
	}
	b.rest = &io.LimitedReader{R: b.out, N: e.size}
	return b.rest, nil
}

func (b *blobs) close() {
	b.in.Close()
	b.cancel()
	_ = b.wait() // it was told to end
}
