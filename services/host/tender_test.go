package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheTenderBesideIsPreferred(t *testing.T) {
	for what, c := range map[string]struct {
		mode   os.FileMode
		folder bool
		beside bool
	}{
		"that everybody may run":   {mode: 0o755, beside: true},
		"that only root may run":   {mode: 0o700},
		"that nobody may run":      {mode: 0o644},
		"that is no file":          {mode: 0o755, folder: true},
		"that is not there at all": {},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "fulmar-hvt")
			var err error
			if c.folder {
				err = os.Mkdir(path, c.mode)
			} else if c.mode != 0 {
				err = os.WriteFile(path, nil, c.mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			want := "/proc/self/exe"
			if c.beside {
				want = path
			}
			if got := tenderBeside(filepath.Join(dir, "host")); got != want {
				t.Errorf("the tender is %s, want %s", got, want)
			}
		})
	}
}
