package albatross

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// daemon makes a handler that knows what a daemon of a generation knows, and closes the connection on anything newer.
func daemon(t *testing.T, speaks Generation, creates chan<- Generation) func(net.Conn) {
	return func(conn net.Conn) {
		frame, err := ReadFrame(conn, 1<<20)
		if err != nil {
			t.Errorf("read request: %v", err)
			return
		}
		// Unmarshal does not know the commands that are older than V3.
		old := map[string]Payload{
			"\xa0\x06\xa3\x04\xa7\x02\x05\x00": Unikernels{List: []Running{{Name: name(t, "hello"), Info: oldInfo()}}, Generation: V2},
			"\xa0\x06\xa3\x04\xac\x02\x05\x00": Text("created unikernel"),
		}
		h, reply := Header{Sequence: uint64(frame[16])}, Payload(nil)
		if p, ok := old[string(frame[len(frame)-8:])]; ok && speaks == V2 {
			reply = p
		}
		if w, err := Unmarshal(frame); err == nil {
			h = w.Header
			switch m := w.Payload.(type) {
			case UnikernelCreate:
				if m.Generation >= min(speaks, V3) {
					creates <- m.Generation
					reply = Text("created unikernel")
				}
			case UnikernelInfo:
				if m.Generation >= speaks {
					reply = Unikernels{Generation: m.Generation}
				}
			case UnikernelRestart:
				if speaks < V2 && (m.Args == nil || m.Generation >= speaks) {
					reply = Text("created unikernel")
				}
			}
		}
		if reply != nil {
			if err := WriteReply(conn, h, reply); err != nil {
				t.Errorf("write reply: %v", err)
			}
		}
	}
}

// oldInfo is all that an info of V2 tells.
func oldInfo() Info {
	return Info{
		CPUIDs: []int{0}, Memory: 32, Digest: []byte("digest"), CPUs: 1, Started: time.Unix(0, 0).UTC(),
		Blocks:  []InfoBlock{{UnikernelDevice: "storage", HostDevice: "vol", SectorSize: 512}},
		Bridges: []InfoBridge{{UnikernelDevice: "service", HostDevice: "br0"}},
	}
}

// An older daemon closes the connection on a command that it does not know; the client finds what it knows, once.
func TestClientLearnsTheGeneration(t *testing.T) {
	for _, server := range []Generation{V5, V4, V3, V2} {
		t.Run(server.String(), func(t *testing.T) {
			creates := make(chan Generation, 2)
			c := &Client{Dir: serve(t, VMMDSocket, daemon(t, server, creates))}
			args := Args{CPUIDs: []int{0}}
			for range 2 {
				if err := c.Create(testContext(t), name(t, "hello"), Config{Args: args}); err != nil {
					t.Fatal(err)
				}
			}
			if a, b, want := <-creates, <-creates, min(server, V3); a != want || b != want {
				t.Errorf("created as %v and %v", a, b)
			}
			if g, ok := c.Speaks(); g != server || ok != (server != V5) {
				t.Errorf("the server speaks %v, known %v", g, ok)
			}
			if err := c.Restart(testContext(t), name(t, "hello")); err != nil {
				t.Error(err)
			}
			if err := c.RestartWith(testContext(t), name(t, "hello"), args); (err == nil) != (server != V2) {
				t.Errorf("restart with arguments: %v", err)
			}
			list, err := c.Info(testContext(t), Name{})
			if err != nil {
				t.Error(err)
			}
			if server == V2 {
				want := []Running{{Name: name(t, "hello"), Info: oldInfo()}}
				if diff := cmp.Diff(want, list, names); diff != "" {
					t.Errorf("info differs (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// A client that was told wrongly finds out.
func TestClientCorrectsWhatItWasTold(t *testing.T) {
	creates := make(chan Generation, 1)
	c := &Client{Dir: serve(t, VMMDSocket, daemon(t, V3, creates))}
	c.Speak(V4)
	if err := c.Create(testContext(t), name(t, "hello"), Config{Args: Args{CPUIDs: []int{0}}}); err != nil || <-creates != V3 {
		t.Errorf("create: %v", err)
	}
}

// A daemon that was killed and came back does not speak less than before, though nothing answered while it was away.
func TestClientIsNotMisledByACrash(t *testing.T) {
	creates := make(chan Generation, 1)
	lives := daemon(t, V5, creates)
	away := make(chan struct{}, 2)
	away <- struct{}{} // the create, and
	away <- struct{}{} // the first question what it speaks
	c := &Client{Dir: serve(t, VMMDSocket, func(conn net.Conn) {
		select {
		case <-away:
		default:
			lives(conn)
		}
	})}
	if err := c.Create(testContext(t), name(t, "hello"), Config{}); !errors.Is(err, ErrNoReply) {
		t.Errorf("create while the daemon is away: %v", err)
	}
	if err := c.Create(testContext(t), name(t, "hello"), Config{}); err != nil || <-creates != V5 {
		t.Errorf("create afterwards: %v", err)
	}
}

// A client that has learnt less than the server speaks finds out when it needs more.
func TestClientFindsThatTheServerIsNewer(t *testing.T) {
	creates := make(chan Generation, 1)
	c := &Client{Dir: serve(t, VMMDSocket, daemon(t, V5, creates))}
	c.Speak(V4)
	if err := c.Create(testContext(t), name(t, "hello"), Config{}); err != nil || <-creates != V5 { // V4 needs a CPU id
		t.Errorf("create: %v", err)
	}
}
