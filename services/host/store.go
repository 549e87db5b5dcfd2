package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
)

// record is what should run. It is on the disk before a create is answered, and off it before a destroy is.
type record struct {
	Name   albatross.Name
	Typ    albatross.Typ
	Args   albatross.Args
	Digest []byte // SHA-256 of the image
	Boot   string // boot id of the machine when it was last started
}

// startup is the record's place in the order of start.
func (r record) startup() int {
	if r.Args.Startup == nil {
		return 50
	}
	return *r.Args.Startup
}

// handle is what is needed to find a running instance again. It means nothing after a boot, so it is not synced to the disk.
type handle struct {
	identity        // of process 0 if it has ended and is to be started again
	Boot     string // boot id of the machine
	Slot     int
	Taps     []string
	Links    []int // their indexes
	Started  time.Time
	Attempt  int // how many restarts in short order led to it
}

// saved is what the store knows of one name.
type saved struct {
	record
	handle *handle // nil: not started, or ended
}

// store is the state on disk, below one directory:
//
//	unikernels/<name>  a record, as JSON, written and renamed: a power cut at any byte leaves the old one or the new one
//	processes/<name>   a handle, likewise
//	images/<sha256>    an image
//	blocks/<name>      the content of a block device, of its size
//	policies           the policies, as JSON, likewise
//	tmp/               what is being written; emptied at start
//	lock               locked by the host whose state it is
type store struct {
	dir  string
	lock *os.File // held while open: of one state there is one host

	writing singleflight.Group // images, by path
}

// openStore makes what is missing of the directories and clears away unfinished writes.
func openStore(dir string) (s *store, err error) {
	s = &store{dir: dir}
	for _, sub := range []string{"unikernels", "processes", "images", "blocks"} {
		if err := os.MkdirAll(s.path(sub), 0o700); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	err = lockFile(s.lock)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("the state directory %s is in use by another host", dir)
	}
	if err == nil {
		err = os.RemoveAll(s.path("tmp"))
	}
	if err == nil {
		err = os.Mkdir(s.path("tmp"), 0o700)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state directory: %w", err), s.lock.Close())
	}
	return s, nil
}

// close lets another host have the state.
func (s *store) close() error { return s.lock.Close() }

func (s *store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// fileName is the name of a unikernel as that of a file or control group: itself, or its hash where it is too long for one.
func fileName(name albatross.Name) string {
	if text := name.String(); len(text) <= 200 {
		return text
	}
	sum := sha256.Sum256([]byte(name.String()))
	return hex.EncodeToString(sum[:])
}

// saveRecord writes what should run under the record's name, to stay through a power cut.
func (s *store) saveRecord(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode state of %s: %w", r.Name, err)
	}
	path := s.path("unikernels", fileName(r.Name))
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return s.writeNew(path, data)
	}
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(s.path("tmp"))); err != nil {
		return fmt.Errorf("write state of %s: %w", r.Name, err)
	}
	return syncDir(filepath.Dir(path))
}

// writeNew writes a file of which there is no older one to be kept whole, and so waits for the disk once and not twice: one sync after the
// rename brings both the bytes and the name to it (ext4, xfs, btrfs and f2fs keep that order). A power cut before it can leave a damaged
// file, of something that nobody was told of. A path that appears meanwhile is replaced.
func (s *store) writeNew(path string, data []byte) (err error) {
	f, err := os.CreateTemp(s.path("tmp"), "new-*")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("write state: %w", err)
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return f.Sync()
}

// savePolicies writes which policies there are, to stay through a power cut.
func (s *store) savePolicies(list []albatross.NamedPolicy) error {
	data, err := json.Marshal(list)
	if err == nil {
		err = renameio.WriteFile(s.path("policies"), data, 0o600, renameio.WithTempDir(s.path("tmp")))
	}
	if err != nil {
		return fmt.Errorf("write policies: %w", err)
	}
	return syncDir(s.dir)
}

// loadPolicies reads which policies there are. If they cannot be read host must not go on as if there were none.
func (s *store) loadPolicies() (list []albatross.NamedPolicy, err error) {
	if err := readJSON(s.path("policies"), &list); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read policies from %s: %w", s.path("policies"), err)
	}
	return list, nil
}

// saveHandle writes how to find the instance of a name again, to stay through a crash of host.
func (s *store) saveHandle(name albatross.Name, h handle) error {
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode process of %s: %w", name, err)
	}
	temp := s.path("tmp", "process-"+fileName(name))
	if err = os.WriteFile(temp, data, 0o600); err == nil {
		err = os.Rename(temp, s.path("processes", fileName(name)))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write process of %s: %w", name, err), removeFile(temp))
	}
	return nil
}

// dropHandle says that the instance of a name has ended.
func (s *store) dropHandle(name albatross.Name) error {
	return removeFile(s.path("processes", fileName(name)))
}

// dropRecord says that nothing should run under a name any more, also after a power cut.
func (s *store) dropRecord(name albatross.Name) error {
	path := s.path("unikernels", fileName(name))
	if err := removeFile(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// load returns what is on the disk, in the order of start. What cannot be read is reported, set aside and passed over.
func (s *store) load(log *slog.Logger) ([]saved, error) {
	files, err := os.ReadDir(s.path("unikernels"))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var all []saved
	for _, f := range files {
		if strings.HasSuffix(f.Name(), damagedSuffix) {
			continue
		}
		var v saved
		if err := readJSON(s.path("unikernels", f.Name()), &v.record); err != nil || fileName(v.Name) != f.Name() || !v.Name.HasLabel() {
			path := s.path("unikernels", f.Name())
			log.Error("could not read state of a unikernel, set it aside", "file", path+damagedSuffix, "err", errors.Join(err, os.Rename(path, path+damagedSuffix)))
			continue
		}
		var h handle
		if err := readJSON(s.path("processes", f.Name()), &h); err == nil {
			v.handle = &h
		} else if !errors.Is(err, fs.ErrNotExist) {
			log.Error("could not read process of a unikernel", "unikernel", v.Name.String(), "err", err)
		}
		all = append(all, v)
	}
	slices.SortStableFunc(all, func(a, b saved) int { return a.startup() - b.startup() })
	return all, nil
}

const damagedSuffix = "+damaged" // no name has a plus sign

// orphans returns the handles of which there is no record.
func (s *store) orphans() ([]handle, error) {
	files, err := os.ReadDir(s.path("processes"))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var all []handle
	for _, f := range files {
		var h handle
		if _, err := os.Stat(s.path("unikernels", f.Name())); err == nil || readJSON(s.path("processes", f.Name()), &h) != nil {
			continue
		}
		all = append(all, h)
	}
	return all, nil
}

// sweep removes handles of names and images of digests that are not kept.
func (s *store) sweep(handles, digests map[string]bool) error {
	return errors.Join(sweepDir(s.path("processes"), handles), sweepDir(s.path("images"), digests))
}

// sweepDir removes every file that is not kept.
func sweepDir(dir string, keep map[string]bool) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	var errs []error
	for _, f := range files {
		if !keep[f.Name()] {
			errs = append(errs, removeFile(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

// saveImage keeps an image under its digest, to stay through a power cut.
func (s *store) saveImage(digest, image []byte) error {
	path := s.path("images", hex.EncodeToString(digest))
	_, err, _ := s.writing.Do(path, func() (any, error) { // who finds a file there must not go on before it is on the disk
		if st, err := os.Stat(path); err == nil && st.Size() == int64(len(image)) {
			return nil, nil //nolint:nilnil // it is there, there is nothing to return
		}
		return nil, s.writeNew(path, image)
	})
	return err
}

// errDamaged reports an image that is not (any more) what its name says, or not there. A power cut leaves none that was answered for.
var errDamaged = errors.New("the image is damaged")

// imageSize is the size of an image in bytes. That it is not there is left to [store.readImage] to tell.
func (s *store) imageSize(digest []byte) (int, error) {
	info, err := os.Stat(s.path("images", hex.EncodeToString(digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at image: %w", err)
	}
	return int(info.Size()), nil
}

// readImage reads an image back. The error is [errDamaged] if it is not the one of the digest.
func (s *store) readImage(digest []byte) ([]byte, error) {
	image, err := os.ReadFile(s.path("images", hex.EncodeToString(digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read image: %w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	if sum := sha256.Sum256(image); !bytes.Equal(sum[:], digest) {
		return nil, fmt.Errorf("read image %x: %w: its digest is %x", digest, errDamaged, sum)
	}
	return image, nil
}

// dropImage removes an image.
func (s *store) dropImage(digest []byte) error {
	return removeFile(s.path("images", hex.EncodeToString(digest)))
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// removeFile removes a file; that it is gone already is no error.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// syncDir brings the names in a directory to the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
