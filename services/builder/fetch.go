package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// maxSum is how much of a text that begins with a SHA-256 is read, in bytes.
const maxSum = 4 << 10

// file plans an image from a file of this machine.
func (s *sources) file(path string) plan {
	return plan{kind: "file", make: func(_ context.Context, _ *log, f *os.File) error { return s.fromFile(path, f) }}
}

// below opens the root of files and finds where a path is in it.
func (s *sources) below(path string) (root *os.Root, inside string, err error) {
	if s.config.FileRoot == "" {
		return nil, "", badImage("file %s: this builder takes no files (--file-root)", path)
	}
	inside, err = filepath.Rel(s.config.FileRoot, filepath.Clean(path))
	if err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return nil, "", badImage("file %s is not below %s, where this builder takes files from", path, s.config.FileRoot)
	}
	root, err = os.OpenRoot(s.config.FileRoot) // no link leads out of it
	if err != nil {
		return nil, "", fmt.Errorf("open the root of files: %w", err)
	}
	return root, inside, nil
}

func (s *sources) fromFile(path string, f *os.File) error {
	root, inside, err := s.below(path)
	if err != nil {
		return err
	}
	defer root.Close()
	in, err := root.OpenFile(inside, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe that nobody writes to is no reason to wait
	if errors.Is(err, fs.ErrNotExist) {
		return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image: file %s does not exist", path)
	}
	if err != nil {
		return badImage("file %s: %w", path, err)
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return badImage("file %s is not a regular file", path)
	}
	return copyImage(f, in, s.config.MaxImage)
}

// url plans an image from the web, which has the SHA-256 that the request says or that the web says.
func (s *sources) url(ctx context.Context, i *fulmarv1.Image) (plan, error) {
	want := i.GetSha256()
	if i.GetSha256Url() != "" {
		var err error
		if want, err = s.sum(ctx, i.GetSha256Url()); err != nil {
			return plan{}, err
		}
	}
	return plan{kind: "url", want: want, make: func(ctx context.Context, _ *log, f *os.File) error {
		return s.fromURL(ctx, i.GetUrl(), func(in io.Reader) error { return copyImage(f, in, s.config.MaxImage) })
	}}, nil
}

// sum asks for the SHA-256 that a text on the web begins with.
func (s *sources) sum(ctx context.Context, url string) (sum string, err error) {
	err = s.fromURL(ctx, url, func(in io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(in, maxSum))
		if err != nil {
			return fmt.Errorf("get a SHA-256: %w", err)
		}
		if sum, err = messages.ParseSum(text); err != nil {
			return badImage("sha256_url: %w", err)
		}
		return nil
	})
	return sum, err
}

func (s *sources) fromURL(ctx context.Context, url string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.Fetch)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return badImage("%w", err)
	}
	url = r.URL.Redacted()
	in, err := s.client.Do(r)
	if err != nil {
		return fmt.Errorf("get image: %w", err)
	}
	defer in.Body.Close()
	switch {
	case in.StatusCode == http.StatusOK:
		return read(in.Body)
	case in.StatusCode >= 500 || in.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("get image %s: the server answers %s", url, in.Status)
	}
	return messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND, "image: url %s: the server answers %s", url, in.Status)
}
