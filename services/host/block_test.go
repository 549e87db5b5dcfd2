package host_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fulmar/albatross"
	"fulmar/solo5/solo5test"
)

const mb = 1 << 20

// noise is n bytes that are hard to compress, the same for a seed.
func noise(t testing.TB, n int, seed byte) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.NewChaCha8([32]byte{seed}).Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// content reads a block device.
func (d *daemon) content(t testing.TB, n albatross.Name, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	image, err := d.DumpBlock(t.Context(), n, albatross.BlockDump{Level: level}, &out)
	if err != nil {
		t.Fatal(err)
	}
	if image.Compressed != (level > 0) {
		t.Errorf("compressed: %v at level %d", image.Compressed, level)
	}
	if !image.Compressed {
		return out.Bytes()
	}
	data, err := albatross.Uncompress(out.Bytes(), 10*mb)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// disk is a configuration of a guest that does something with its block device.
func disk(t testing.TB, device string, args ...string) albatross.Config {
	t.Helper()
	image, err := os.ReadFile(solo5test.BuildSPT(t, solo5test.Features{Blocks: 1}))
	if err != nil {
		t.Fatal(err)
	}
	cfg := unikernel(image, 0, args...)
	cfg.Blocks = []albatross.Block{{Name: "disk0", Device: device}}
	return cfg
}

func TestBlockDeviceFromAddToRemove(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg)
	vol := name(t, "a:vol")
	if err := d.AddBlock(t.Context(), vol, albatross.BlockAdd{Size: 3}); err != nil {
		t.Fatal(err)
	}
	if got := d.content(t, vol, 0); !bytes.Equal(got, make([]byte, 3*mb)) {
		t.Errorf("a new block device has %d bytes and is not all zeros", len(got))
	}
	for _, level := range []int{0, 1, 9} {
		data := noise(t, 3*mb-1000*level, byte(level))
		sent := data
		if level > 0 {
			var err error
			if sent, err = albatross.Compress(data, level); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.SetBlock(t.Context(), vol, albatross.BlockSet{Compressed: level > 0}, bytes.NewReader(sent)); err != nil {
			t.Fatal(err)
		}
		if got := d.content(t, vol, level); !bytes.Equal(got, append(data, make([]byte, 1000*level)...)) {
			t.Errorf("level %d: read back %d bytes, others than were sent", level, len(got))
		}
	}

	u := name(t, "a:u")
	d.create(t, u, disk(t, "vol", "disk", "write", "512", "512", "90"))
	d.await(t, u, ended)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	d = start(t, cfg)
	if got := d.content(t, vol, 0); !bytes.Equal(got[512:1024], bytes.Repeat([]byte{90}, 512)) || got[1024] == 90 {
		t.Errorf("what the unikernel wrote is %v", got[500:1030])
	}
	if err := d.RemoveBlock(t.Context(), vol); err != nil {
		t.Error(err)
	}
	if files, err := os.ReadDir(filepath.Join(cfg.StateDir, "blocks")); err != nil || len(files) > 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
}

func TestBlockDeviceInUse(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg)
	vol, u := name(t, "a:vol"), name(t, "a:u")
	if err := d.AddBlock(t.Context(), vol, albatross.BlockAdd{Size: 1}); err != nil {
		t.Fatal(err)
	}
	ucfg := disk(t, "vol", "sleep", "1000")
	ucfg.Blocks[0].SectorSize = 4096
	d.create(t, u, ucfg)
	if err := d.stop(); err != nil { // the next host knows it, too
		t.Fatal(err)
	}
	d = start(t, cfg).destroyAll(t)
	list, err := d.Info(t.Context(), u)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d unikernels, %v", len(list), err)
	}
	if diff := cmp.Diff([]albatross.InfoBlock{{UnikernelDevice: "disk0", HostDevice: "vol", SectorSize: 4096, Size: 1}}, list[0].Blocks); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	for what, err := range map[string]error{
		"albatross: remove block a:vol: remove block: is in use":   d.RemoveBlock(t.Context(), vol),
		"albatross: set block a:vol: set block: is in use":         d.SetBlock(t.Context(), vol, albatross.BlockSet{}, strings.NewReader("x")),
		"albatross: create a:second: block device a:vol is in use": d.Create(t.Context(), name(t, "a:second"), ucfg),
		"albatross: create b:u: block device b:vol not found":      d.Create(t.Context(), name(t, "b:u"), ucfg),
	} {
		if err == nil || err.Error() != what {
			t.Errorf("got %v, want %s", err, what)
		}
	}
	if _, err := d.DumpBlock(t.Context(), vol, albatross.BlockDump{}, io.Discard); err == nil {
		t.Error("a block device in use was read out")
	}
	blocks, err := d.Blocks(t.Context(), albatross.Name{})
	if err != nil || len(blocks) != 1 || !blocks[0].Active {
		t.Errorf("blocks are %+v, %v", blocks, err)
	}
	if err := errors.Join(d.Restart(t.Context(), u), d.ForceCreate(t.Context(), u, ucfg), d.Destroy(t.Context(), u), d.RemoveBlock(t.Context(), vol)); err != nil {
		t.Error(err)
	}
}

func TestPolicyBindsBlockDevices(t *testing.T) {
	d := start(t, config(t))
	if err := d.AddPolicy(t.Context(), path(t, "a"), albatross.Policy{Block: new(3)}); err != nil {
		t.Fatal(err)
	}
	if err := d.AddPolicy(t.Context(), path(t, "a:none"), albatross.Policy{}); err != nil {
		t.Fatal(err)
	}
	add := func(s string, size int) error {
		return d.AddBlock(t.Context(), name(t, s), albatross.BlockAdd{Size: size})
	}
	if err := errors.Join(add("a:x", 1), add("a:b:y", 1), add("c:z", 4)); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"albatross: add block a:w: a block device of 2 MB is not allowed by policy (3 MB, used 2 MB)":        add("a:w", 2),
		"albatross: add block a:none:w: a block device of 1 MB is not allowed by policy (0 MB, used 0 MB)":   add("a:none:w", 1),
		"albatross: add block a:x: block device with same name already exists":                               add("a:x", 1),
		"albatross: add block c:w: overflow while computing bytes":                                           add("c:w", 1<<44),
		"albatross: add policy of a:: block devices would exceed the limit set by policy to 1 MB, used 2 MB": d.AddPolicy(t.Context(), path(t, "a"), albatross.Policy{Block: new(1)}),
	} {
		if err == nil || err.Error() != what {
			t.Errorf("got %v, want %s", err, what)
		}
	}
	if err := add("a:w", 1); err != nil {
		t.Error(err)
	}
	if err := add("c:w", 1<<40); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("an exabyte: %v", err)
	}
}

// What is wrong with a stream is told once, when the client has sent it all; the block device is as it was, and free.
func TestBadBlockStreams(t *testing.T) {
	d := start(t, config(t))
	vol := name(t, "vol")
	if err := d.AddBlock(t.Context(), vol, albatross.BlockAdd{Size: 1}); err != nil {
		t.Fatal(err)
	}
	old := noise(t, mb, 1)
	if err := d.SetBlock(t.Context(), vol, albatross.BlockSet{}, bytes.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	large, err := albatross.Compress(make([]byte, 50*mb), 9)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		stream     []byte
		compressed bool
		want       string
	}{
		"a byte too long":          {noise(t, mb+1, 2), false, "stream exceeds size"},
		"much too long":            {noise(t, 5*mb, 2), false, "stream exceeds size"},
		"too long uncompressed":    {large, true, "stream exceeds size"},
		"not compressed":           {noise(t, 3*mb, 3), true, "failed to uncompress: Invalid Zlib header"},
		"half of what is needed":   {large[:len(large)/2000], true, "failed to uncompress: "},
		"nothing that is compress": {nil, true, "failed to uncompress: "},
	} {
		t.Run(what, func(t *testing.T) {
			err := d.SetBlock(t.Context(), vol, albatross.BlockSet{Compressed: c.compressed}, bytes.NewReader(c.stream))
			if failure := (*albatross.FailureError)(nil); !errors.As(err, &failure) || !strings.HasPrefix(failure.Message, c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if !bytes.Equal(d.content(t, vol, 1), old) {
				t.Error("the content has changed")
			}
		})
	}
	conn := dial(t, d.cfg, albatross.VMMDSocket) // and one that goes away in the midst
	command := mustMarshal(t, albatross.Wire{Header: albatross.Header{Name: vol}, Payload: albatross.BlockSet{}})
	if err := errors.Join(albatross.WriteFrame(conn, command), albatross.WriteFrame(conn, old[:1000]), conn.Close()); err != nil {
		t.Fatal(err)
	}
	for { // until host has seen that it went
		err := d.SetBlock(t.Context(), vol, albatross.BlockSet{}, strings.NewReader(""))
		if err == nil {
			break
		}
		if !errors.Is(err, albatross.ErrInUse) && !strings.Contains(err.Error(), "is in use") {
			t.Fatal(err)
		}
	}
}

func TestOldCommandsForBlockDevices(t *testing.T) {
	d := start(t, config(t))
	small, err := albatross.Compress([]byte("first"), 9)
	if err != nil {
		t.Fatal(err)
	}
	vol := albatross.Header{Name: name(t, "vol")}
	say := func(c albatross.Command) albatross.Payload {
		t.Helper()
		return ask(t, d.cfg, albatross.VMMDSocket, albatross.Wire{Header: vol, Payload: c}).Payload
	}
	if got := say(albatross.OldBlockAdd{Size: 1, Compressed: true, Data: small}); got != albatross.Text("added block device") {
		t.Errorf("add: %v", got)
	}
	if got := d.content(t, vol.Name, 0); !bytes.HasPrefix(got, []byte("first\x00")) || len(got) != mb {
		t.Errorf("content is %q", got[:10])
	}
	if got := say(albatross.OldBlockSet{Data: []byte("second")}); got != albatross.Text("set block device") {
		t.Errorf("set: %v", got)
	}
	image, ok := say(albatross.OldBlockDump{Level: 9}).(albatross.OldBlockImage)
	data, err := albatross.Uncompress(image.Image, mb)
	if !ok || !image.Compressed || err != nil || !bytes.HasPrefix(data, []byte("second\x00")) {
		t.Errorf("dump: %v %q %v", ok, fmt.Sprintf("%.10s", data), err)
	}
	if got := say(albatross.OldBlockAdd{Size: 1, Data: make([]byte, mb+1)}); got != albatross.Failure("block device with same name already exists") {
		t.Errorf("second add: %v", got)
	}
}
