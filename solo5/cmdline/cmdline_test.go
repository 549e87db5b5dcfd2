package cmdline

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fulmar/solo5"
)

func TestServeSaysOneThing(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args   []string
		status int
		want   string
	}{
		"the version":           {[]string{"--version"}, 0, "test tender\nABI version 2\n"},
		"a mistake":             {[]string{"--mem=x", image}, 1, "test: --mem=x: the memory is a number of MB\n"},
		"a file that is not":    {[]string{image + "s"}, 1, "test: open " + image + "s: no such file or directory\n"},
		"a block that is not":   {[]string{"--block:a=" + image + "s", image}, 1, "test: attach block device: open " + image + "s: no such file or directory\n"},
		"what cannot be tended": {[]string{"--", image}, 1, "test: " + image + ": refused\n"},
	}
	refuse := Tender{"test", func(g solo5.Guest) (*solo5.Tender, error) { return nil, errors.New("refused") }}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			if status := refuse.Serve(tt.args, &said); status != tt.status || said.String() != tt.want {
				t.Errorf("status %d and %q instead of %d and %q", status, said.String(), tt.status, tt.want)
			}
		})
	}
}

func TestHelpNamesEveryOption(t *testing.T) {
	var said strings.Builder
	if status := (Tender{Name: "test"}).Serve([]string{"--help"}, &said); status != 1 {
		t.Errorf("status %d", status)
	}
	for _, option := range []string{"usage: test ", "--mem=", "--net:", "--net-mac:", "--block:", "--block-sector-size:", "--version", "--help"} {
		if !strings.Contains(said.String(), option) {
			t.Errorf("%q is missing in\n%s", option, said.String())
		}
	}
}

func TestDevicesReachTheGuest(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	var got solo5.Guest
	look := Tender{"test", func(g solo5.Guest) (*solo5.Tender, error) {
		got = g
		return nil, errors.New("seen")
	}}
	look.Serve([]string{"--mem=9", "--block:b=" + disk, "--block-sector-size:b=4096", disk, "x", "y"}, &strings.Builder{})
	if got.Memory != 9 || len(got.Blocks) != 1 || got.Blocks[0].Name != "b" || got.Blocks[0].SectorSize != 4096 || got.Blocks[0].File.Name() != disk ||
		strings.Join(got.Args, " ") != "x y" || got.Name != "disk" {
		t.Errorf("%+v", got)
	}
}
