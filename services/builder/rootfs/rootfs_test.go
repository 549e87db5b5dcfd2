package rootfs_test

import (
	"errors"
	"strings"
	"testing"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/services/builder/rootfs"
)

var errGone = errors.New("the engine is gone")

// image is a hostile image by its paths.
func look(path string) (rootfs.Entry, error) {
	return map[string]rootfs.Entry{
		"/unikernel":   {Kind: rootfs.File, Size: 5},
		"/huge":        {Kind: rootfs.File, Size: 1 << 40},
		"/dir":         {Kind: rootfs.Directory},
		"/dir/file":    {Kind: rootfs.File, Size: 1},
		"/null":        {Kind: rootfs.Special},
		"/absolute":    {Kind: rootfs.Link, Link: "/dir/file"},
		"/relative":    {Kind: rootfs.Link, Link: "./dir//../dir/file"},
		"/parent":      {Kind: rootfs.Link, Link: "dir/"},
		"/dir/up":      {Kind: rootfs.Link, Link: "../unikernel"},
		"/dir/out":     {Kind: rootfs.Link, Link: "../../etc/passwd"},
		"/away":        {Kind: rootfs.Link, Link: "/../etc/passwd"},
		"/nowhere":     {Kind: rootfs.Link, Link: "dir/absent"},
		"/loop":        {Kind: rootfs.Link, Link: "loop"},
		"/grow":        {Kind: rootfs.Link, Link: "grow/grow"},
		"/root":        {Kind: rootfs.Link, Link: "/"},
		"/empty":       {Kind: rootfs.Link},
		"/long":        {Kind: rootfs.Link, Link: strings.Repeat("dir/../", 600)},
		"/tohuge":      {Kind: rootfs.Link, Link: "huge"},
		"/tonull":      {Kind: rootfs.Link, Link: "null"},
		"/through":     {Kind: rootfs.Link, Link: "unikernel/file"},
		"/dir/through": {Kind: rootfs.Link, Link: "../absolute"},
	}[path], map[string]error{"/broken": errGone}[path]
}

func TestFind(t *testing.T) {
	for name, want := range map[string]string{
		"/unikernel":    "/unikernel",
		"unikernel":     "/unikernel",
		"/dir/file":     "/dir/file",
		"/absolute":     "/dir/file",
		"/relative":     "/dir/file",
		"/parent/file":  "/dir/file",
		"/parent/up":    "/unikernel",
		"/root/dir/up":  "/unikernel",
		"/dir/through":  "/dir/file",
		"/../unikernel": "/unikernel",
	} {
		if got, err := rootfs.Find(name, 5, look); err != nil || got != want {
			t.Errorf("Find(%s) = %q, %v, want %s", name, got, err, want)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	const bad, absent = fulmarv1.ReasonCode_REASON_CODE_IMAGE, fulmarv1.ReasonCode_REASON_CODE_NOT_FOUND
	for name, want := range map[string]struct {
		code fulmarv1.ReasonCode
		text string
	}{
		"/absent":         {absent, "the image has no file /absent"},
		"/absent/file":    {absent, "the image has no file /absent/file"},
		"/unikernel/file": {absent, "the image has no file /unikernel/file"},
		"/nowhere":        {absent, "the image has no file /dir/absent, to which its link /nowhere leads"},
		"/through":        {absent, "the image has no file /unikernel/file, to which its link /through leads"},
		"/dir":            {bad, "/dir of the image is a directory, not a file"},
		"/parent":         {bad, "/dir, to which its link /parent leads, of the image is a directory, not a file"},
		"/root":           {bad, "/, to which its link /root leads, of the image is a directory, not a file"},
		"/empty":          {bad, "/, to which its link /empty leads, of the image is a directory, not a file"},
		"/null":           {bad, "/null of the image is a device, a pipe or a socket, not a file"},
		"/tonull":         {bad, "/null, to which its link /tonull leads, of the image is a device, a pipe or a socket, not a file"},
		"/huge":           {bad, "/huge of the image has 1099511627776 bytes, more than 5"},
		"/dir/out":        {bad, "/dir/out leads out of the image by a link"},
		"/parent/out":     {bad, "/parent/out leads out of the image by a link"},
		"/away":           {bad, "/away leads out of the image by a link"},
		"/loop":           {bad, "/loop leads through more than 40 links of the image"},
		"/long":           {bad, "/long leads through a path of more than 4096 bytes of the image"},
		"/grow":           {bad, "/grow leads through more than 40 links of the image"},
	} {
		got, err := rootfs.Find(name, 5, look)
		if r, ok := messages.AsRefusal(err); !ok || r.Code != want.code || err.Error() != want.text {
			t.Errorf("Find(%s) = %q, %v, want %v %q", name, got, err, want.code, want.text)
		}
	}
	if _, err := rootfs.Find("/broken", 5, look); !errors.Is(err, errGone) {
		t.Errorf("an error of the image is lost: %v", err)
	}
}

func FuzzFind(f *testing.F) {
	f.Add("/dir/through", "../..")
	f.Add("a/../b", "/")
	f.Fuzz(func(t *testing.T, name, link string) {
		got, err := rootfs.Find(name, 1, func(path string) (rootfs.Entry, error) {
			if !strings.HasPrefix(path, "/") || strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./") || strings.Contains(path, "//") {
				t.Fatalf("it asks for %q", path)
			}
			switch len(path) % 3 {
			case 0:
				return rootfs.Entry{Kind: rootfs.Link, Link: link}, nil
			case 1:
				return rootfs.Entry{Kind: rootfs.Directory}, nil
			}
			return rootfs.Entry{Kind: rootfs.File}, nil
		})
		if err == nil && len(got)%3 != 2 {
			t.Errorf("Find(%q) = %q, which is no file", name, got)
		}
	})
}
