package host_test

import (
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"fulmar/albatross"
	"fulmar/services/host/hosttest"
)

func TestWhatManyClientsHoldInMemoryIsBounded(t *testing.T) {
	cfg := config(t)
	cfg.MaxImage = 1 << 20
	d := start(t, cfg).destroyAll(t)
	const large = 1<<20 - 8192
	image := hosttest.Guest(t, 0)
	a := name(t, ":a")
	d.create(t, a, unikernel(slices.Concat(image, make([]byte, large-len(image))), 0, "wait"))
	bomb, err := albatross.Compress(make([]byte, large), 9)
	if err != nil {
		t.Fatal(err)
	}
	vol := name(t, ":vol")
	if err := d.AddBlock(t.Context(), vol, albatross.BlockAdd{Size: 1}); err != nil {
		t.Fatal(err)
	}

	var slow []net.Conn
	for range 4 { // ask for an image, and take only the start of the answer
		conn, err := net.Dial("unix", filepath.Join(cfg.RunDir, albatross.VMMDSocket))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		request, err := albatross.Marshal(albatross.Wire{Header: albatross.Header{Name: a}, Payload: albatross.UnikernelGet{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := albatross.WriteFrame(conn, request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
	}
	say := func(n albatross.Name, c albatross.Command) albatross.Payload {
		t.Helper()
		return ask(t, cfg, albatross.VMMDSocket, albatross.Wire{Header: albatross.Header{Name: n}, Payload: c}).Payload
	}
	bombed := albatross.UnikernelCreate{Config: albatross.Config{Image: bomb, Compressed: true, Args: albatross.Args{Memory: 8}}}
	for what, got := range map[string]albatross.Payload{
		"get":                   say(a, albatross.UnikernelGet{}),
		"restart":               say(a, albatross.UnikernelRestart{}),
		"a bomb":                say(name(t, ":b"), bombed),
		"a bomb in a block":     say(vol, albatross.OldBlockSet{Data: bomb, Compressed: true}),
		"a dump in one message": say(vol, albatross.OldBlockDump{}),
	} {
		if got != albatross.Failure("too many large requests at once, try again") {
			t.Errorf("%s: got %.200v", what, got)
		}
	}
	c := name(t, ":c")
	d.create(t, c, unikernel(image, 0, "wait")) // who wants little is served
	for _, conn := range slow {
		_ = conn.Close()
	}
	until(t, "a bomb is looked at when there is room again", func() bool {
		return say(name(t, ":b"), bombed) == albatross.Failure("error during ELF parsing")
	})
}
