package albatross

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// blockServer keeps the content of one block device, named a:vol.
func blockServer(t *testing.T, content *bytes.Buffer) func(net.Conn) {
	var mu sync.Mutex
	return func(conn net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		h, m, err := ReadRequest(conn, 1<<20)
		if err != nil {
			t.Error(err)
			return
		}
		reply := func(p Payload) {
			if err := WriteReply(conn, h, p); err != nil {
				t.Error(err)
			}
		}
		if h.Name != name(t, "a:vol") {
			reply(Failure("set block: not found"))
			return
		}
		switch m.(type) {
		case BlockSet:
			if _, err := io.Copy(content, NewBlockReader(conn)); err != nil {
				reply(Failure(err.Error()))
				return
			}
			reply(Text("set block device"))
		case BlockDump:
			reply(BlockImage{})
			for chunk := content.Next(4096); len(chunk) > 0; chunk = content.Next(4096) {
				reply(BlockData{Data: chunk})
			}
			reply(BlockData{})
		}
	}
}

func TestClientStreamsBlocks(t *testing.T) {
	for _, size := range []int{0, 1, blockChunk, 3*blockChunk + 5} {
		data := bytes.Repeat([]byte("block"), size/5+1)[:size]
		var kept, got bytes.Buffer
		c := &Client{Dir: serve(t, VMMDSocket, blockServer(t, &kept))}
		if err := c.SetBlock(testContext(t), name(t, "a:vol"), BlockSet{}, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.DumpBlock(testContext(t), name(t, "a:vol"), BlockDump{}, &got); err != nil || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%d bytes come back as %d, error %v", size, got.Len(), err)
		}
	}
}

// The daemon's reason is told even if it does not read the stream.
func TestClientHearsARefusedBlock(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, blockServer(t, nil))}
	err := c.SetBlock(testContext(t), name(t, "nosuch"), BlockSet{}, io.LimitReader(endless{}, 16<<20))
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestDumpCutShort(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(Header, Command) Payload { return BlockImage{} }))}
	var got bytes.Buffer
	if _, err := c.DumpBlock(testContext(t), name(t, "a:vol"), BlockDump{}, &got); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestBlockReader(t *testing.T) {
	tests := map[string]struct {
		in, want string
		err      error
	}{
		"two frames":          {"\x00\x00\x00\x02ab\x00\x00\x00\x01c\x00\x00\x00\x00rest", "abc", nil},
		"no frame":            {"\x00\x00\x00\x00", "", nil},
		"an end without zero": {"\x00\x00\x00\x02ab", "ab", io.ErrUnexpectedEOF},
		"a frame of 2 MB":     {"\x00\x20\x00\x00", "", ErrFrameTooLarge},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			got, err := io.ReadAll(NewBlockReader(strings.NewReader(tt.in)))
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestClientLists(t *testing.T) {
	c := &Client{Dir: serve(t, VMMDSocket, answer(t, func(h Header, m Command) Payload {
		switch m := m.(type) {
		case PolicyInfo:
			return Policies{{Name: Name{}, Policy: Policy{Unikernels: 1}}, {Name: name(t, "sub:")}}
		case BlockInfo:
			return Blocks{{Name: name(t, ":vol"), Size: 10}}
		case UnikernelGet:
			return Image{Compressed: m.Level > 0, Image: []byte("ELF")}
		case PolicyAdd, PolicyRemove, BlockAdd, BlockRemove:
			return Text("done with " + h.Name.String())
		}
		return nil
	}))}
	ctx := testContext(t)
	path, err := ParsePath("foo")
	if err != nil {
		t.Fatal(err)
	}
	policies, err := c.Policies(ctx, path)
	if err != nil || len(policies) != 2 || policies[0].Name != name(t, "foo:") || policies[1].Name != name(t, "foo:sub:") {
		t.Errorf("policies %+v, %v", policies, err)
	}
	blocks, err := c.Blocks(ctx, path.Name())
	if diff := cmp.Diff([]BlockDevice{{Name: name(t, "foo:vol"), Size: 10}}, blocks, names); err != nil || diff != "" {
		t.Errorf("blocks %v: %s", err, diff)
	}
	image, err := c.Image(ctx, name(t, "foo:net"), UnikernelGet{Level: 9})
	if err != nil || !image.Compressed || string(image.Image) != "ELF" {
		t.Errorf("image %+v, %v", image, err)
	}
	for _, err := range []error{
		c.AddPolicy(ctx, path, Policy{}), c.RemovePolicy(ctx, path),
		c.AddBlock(ctx, name(t, "foo:vol"), BlockAdd{Size: 1}), c.RemoveBlock(ctx, name(t, "foo:vol")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}
