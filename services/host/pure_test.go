package host

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fulmar/albatross"
	"fulmar/solo5"
)

// exited is an exit by code, signaled one by signal.
func exited(code int) exit          { return exit{known: true, status: unix.WaitStatus(code << 8)} }
func signaled(sig unix.Signal) exit { return exit{known: true, status: unix.WaitStatus(sig)} }
func parse(s string) albatross.Name { n, _ := albatross.ParseName(s); return n }
func texts(lines []line) (all []string) {
	for _, l := range lines {
		all = append(all, l.text)
	}
	return all
}

func TestExit(t *testing.T) {
	for what, c := range map[string]struct {
		exit     exit
		text     string
		kind     string
		codes    []int
		restarts bool
	}{
		"success restarts if all do":             {exited(0), "fulmar: exited with status 0", "zero", nil, true},
		"a code restarts if all do":              {exited(3), "fulmar: exited with status 3", "nonzero", nil, true},
		"a code restarts if it is named":         {exited(3), "fulmar: exited with status 3", "nonzero", []int{2, 3}, true},
		"a code does not if others are named":    {exited(3), "fulmar: exited with status 3", "nonzero", []int{2, 4}, false},
		"1 never does":                           {exited(1), "fulmar: exited with status 1", "nonzero", []int{1}, false},
		"60 never does":                          {exited(60), "fulmar: exited with status 60", "nonzero", nil, false},
		"64 never does":                          {exited(64), "fulmar: exited with status 64", "nonzero", []int{64}, false},
		"65 does":                                {exited(65), "fulmar: exited with status 65", "nonzero", nil, true},
		"a signal never does":                    {signaled(unix.SIGSYS), "fulmar: killed by signal SIGSYS", "signal", nil, false},
		"a signal without a name never does":     {signaled(40), "fulmar: killed by signal 40", "signal", nil, false},
		"an unknown status does if all do":       {exit{}, "fulmar: exited, status unknown", "unknown", nil, true},
		"an unknown status is none of the named": {exit{}, "fulmar: exited, status unknown", "unknown", []int{0}, false},
	} {
		t.Run(what, func(t *testing.T) {
			if got := c.exit.String(); got != c.text {
				t.Errorf("text %q, want %q", got, c.text)
			}
			if got := c.exit.kind(); got != c.kind {
				t.Errorf("kind %q, want %q", got, c.kind)
			}
			if got := c.exit.restarts(c.codes); got != c.restarts {
				t.Errorf("restarts %v, want %v", got, c.restarts)
			}
		})
	}
}

func TestAfter(t *testing.T) {
	restart := albatross.FailBehaviour{Restart: true}
	for what, c := range map[string]struct {
		args  albatross.Args
		exit  exit
		want  albatross.Args
		again bool
	}{
		"nothing is asked for":      {albatross.Args{}, exited(3), albatross.Args{}, false},
		"a restart is":              {albatross.Args{Fail: restart}, exited(3), albatross.Args{Fail: restart}, true},
		"--name is unknown":         {albatross.Args{AddName: true}, exited(64), albatross.Args{}, true},
		"another argument is":       {albatross.Args{Fail: restart}, exited(64), albatross.Args{Fail: restart}, false},
		"it was killed with --name": {albatross.Args{AddName: true}, signaled(unix.SIGKILL), albatross.Args{AddName: true}, false},
	} {
		t.Run(what, func(t *testing.T) {
			got, again := after(record{Args: c.args}, c.exit)
			if diff := cmp.Diff(c.want, got.Args); diff != "" || again != c.again {
				t.Errorf("again %v, want %v; (-want +got):\n%s", again, c.again, diff)
			}
		})
	}
}

func TestPause(t *testing.T) {
	for what, c := range map[string]struct {
		attempt int
		ran     time.Duration
		next    int
		wait    time.Duration
	}{
		"the first":              {0, time.Second, 1, 100 * time.Millisecond},
		"the fourth":             {3, time.Second, 4, 800 * time.Millisecond},
		"the longest":            {9, time.Second, 10, 30 * time.Second},
		"many":                   {1000, time.Second, 1001, 30 * time.Second},
		"after a steady minute":  {9, time.Minute, 1, 100 * time.Millisecond},
		"it never ran, the next": {1, 0, 2, 200 * time.Millisecond},
	} {
		if next, wait := pause(c.attempt, c.ran); next != c.next || wait != c.wait {
			t.Errorf("%s: %d, %v; want %d, %v", what, next, wait, c.next, c.wait)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 197946 33726464 33 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 1792\n"
	for what, command := range map[string]string{"plain": "(hello)", "nasty": "(a) S 1 2 (3))"} {
		fields, err := parseStat("7 " + command + rest)
		if err != nil || fields[3] != "S" || fields[22] != "197946" || fields[52] != "1792" {
			t.Errorf("%s: %q, %v", what, fields, err)
		}
	}
	for _, text := range []string{"", "7", "7 (hello)", "7 (hello) S 1", "no parentheses" + rest} {
		if fields, err := parseStat(text); err == nil {
			t.Errorf("%q: %q", text, fields)
		}
	}
}

func TestSplitter(t *testing.T) {
	long := strings.Repeat("x", maxLine+100)
	for what, c := range map[string]struct {
		writes []string
		want   []string
	}{
		"whole lines":            {[]string{"a\nb\n"}, []string{"a", "b"}},
		"a line in pieces":       {[]string{"a", "b", "c\n"}, []string{"abc"}},
		"empty lines":            {[]string{"\n\n\r\na\n\n"}, []string{"a"}},
		"a carriage return":      {[]string{"a\r\nb\rc\n"}, []string{"a", "b\rc"}},
		"no end":                 {[]string{"a\nb"}, []string{"a", "b"}},
		"a long line":            {[]string{long + "\nb\n"}, []string{long[:maxLine], "b"}},
		"a long line in pieces":  {[]string{long, long, "\nb\n"}, []string{long[:maxLine], "b"}},
		"a long line to the end": {[]string{long}, []string{long[:maxLine]}},
	} {
		t.Run(what, func(t *testing.T) {
			var s splitter
			var got []line
			for _, w := range c.writes {
				got = append(got, s.split([]byte(w), time.Time{})...)
			}
			got = append(got, s.flush(time.Time{})...)
			if diff := cmp.Diff(c.want, texts(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestASlowSubscriberMissesLinesAndIsTold(t *testing.T) {
	con := &console{}
	sub, _ := con.subscribe(sinceCount(10))
	for range 3 * ringLines {
		con.add(line{text: "old"})
	}
	con.add(line{text: "new"})
	lines, missed := con.fetch(sub)
	if len(lines) != ringLines || missed != 2*ringLines+1 || lines[ringLines-1].text != "new" {
		t.Errorf("%d lines, %d missed", len(lines), missed)
	}
	con.add(line{text: "newer"})
	if lines, missed = con.fetch(sub); missed != 0 || cmp.Diff([]string{"newer"}, texts(lines)) != "" {
		t.Errorf("then %q, %d missed", texts(lines), missed)
	}
	if lines, missed = con.fetch(sub); missed != 0 || len(lines) != 0 {
		t.Errorf("then %q, %d missed", texts(lines), missed)
	}
}

func TestConsolesOfEndedUnikernelsAreForgotten(t *testing.T) {
	cs := newConsoles()
	running := cs.begin(parse(":running"))
	waited, sub, used := cs.subscribe(parse(":waited"), sinceCount(0))
	if used {
		t.Error("a unikernel that never ran is used")
	}
	for i := range 3 * inactiveMax {
		cs.begin(parse(":x" + strings.Repeat("y", i%50) + "-" + string(rune('a'+i/50)))).setEnded(time.Now())
	}
	cs.begin(parse(":old")).setEnded(time.Now().Add(-2 * inactiveAge))
	cs.begin(parse(":trigger"))
	if len(cs.byName) > inactiveMax+4 {
		t.Errorf("%d consoles are kept", len(cs.byName))
	}
	if cs.byName[parse(":running")] != running || cs.byName[parse(":waited")] != waited || cs.byName[parse(":old")] != nil {
		t.Error("the wrong consoles were forgotten")
	}
	waited.unsubscribe(sub)
	cs.begin(parse(":trigger2"))
	if cs.byName[parse(":waited")] != nil {
		t.Error("a console that nobody waits for any more is kept")
	}
}

func TestSlots(t *testing.T) {
	s := newSlots()
	s.claim(1)
	for _, want := range []int{0, 2, 3} {
		if got, err := s.take(); got != want || err != nil {
			t.Errorf("slot %d, %v; want %d", got, err, want)
		}
	}
	s.give(2)
	s.give(noSlot)
	if got, err := s.take(); got != 2 || err != nil {
		t.Errorf("slot %d, %v; want the freed one", got, err)
	}
	for err := error(nil); err == nil; {
		_, err = s.take()
	}
	if len(s.taken) != slotsMax {
		t.Errorf("%d slots were taken", len(s.taken))
	}
}

func TestRelative(t *testing.T) {
	for _, c := range []struct{ name, asked, want string }{
		{"foo:net", "foo:net", "foo:net"},
		{"foo:net", ":", "foo:net"},
		{"foo:net", "foo:", ":net"},
		{"foo:sub:x", "foo:", "sub:x"},
		{":net", "foo:", ""},
		{"foobar:net", "foo:", ""},
		{"foo:net", "foo:other", ""},
		{":net", ":", ":net"},
	} {
		got, ok := relative(parse(c.name), parse(c.asked))
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s seen from %s: %v, %v; want %q", c.name, c.asked, got, ok, c.want)
		}
	}
}

func TestCheckImage(t *testing.T) {
	net := solo5.Device{Name: "service0", Type: solo5.NetDevice, Handle: 1}
	block := solo5.Device{Name: "storage", Type: solo5.BlockDevice, Handle: 2}
	image := func(devices ...solo5.Device) *solo5.Image {
		return &solo5.Image{Target: solo5.SPT, ABI: 2, KernelEnd: 1 << 20, Devices: devices}
	}
	bridge := []albatross.Bridge{{Netif: "service0"}}
	for what, c := range map[string]struct {
		image *solo5.Image
		args  albatross.Args
		want  string
	}{
		"it fits":         {image(net), albatross.Args{Memory: 8, Bridges: bridge, CPUIDs: []int{0}}, ""},
		"two of one name": {image(net), albatross.Args{Memory: 8, Bridges: append(bridge, bridge...)}, `specified bridge(s) does not match with the manifest. Devices present in manifest: net "service0"`},
		"no block device": {
			image(net, block),
			albatross.Args{Memory: 8, Bridges: bridge},
			`specified block device(s) does not match with the manifest. Devices present in manifest: net "service0", block "storage"`,
		},
		"it fits with a block device": {
			image(net, block), albatross.Args{Memory: 8, Bridges: bridge, Blocks: []albatross.Block{{Name: "storage", SectorSize: 4096}}}, "",
		},
		"an odd sector": {
			image(net, block),
			albatross.Args{Memory: 8, Bridges: bridge, Blocks: []albatross.Block{{Name: "storage", SectorSize: 1000}}},
			`block device storage: a sector of 1000 bytes is not a power of two from 512 to 32768`,
		},
		"no virtual machines": {&solo5.Image{Target: solo5.HVT, ABI: 2}, albatross.Args{Memory: 8}, `unsupported solo5 target hvt`},
		"two foreign CPUs":    {image(), albatross.Args{Memory: 8, CPUIDs: []int{7, 0, 9}}, `CPUids 7, 9 are not allowed by policy`},
		"another ABI":         {&solo5.Image{Target: solo5.SPT, ABI: 1}, albatross.Args{Memory: 8}, `the image needs version 1 of the spt interface, and only version 2 is supported`},
	} {
		t.Run(what, func(t *testing.T) {
			got := ""
			if err := checkImage(c.image, c.args, []int{0, 1}, []solo5.Target{solo5.SPT}); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestAPowerCutAtAnyByteLeavesTheOldStateOrTheNew(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	open := func(dir string) *store {
		t.Helper()
		s, err := openStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.close() })
		return s
	}
	dir := t.TempDir()
	s := open(dir)
	older := record{Name: parse("a:b"), Args: albatross.Args{Memory: 8, Arguments: []string{"old"}}, Digest: []byte{1}, Boot: "x"}
	if err := s.saveRecord(older); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "unikernels", "a:b")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := older
	newer.Args.Arguments = []string{"new"}
	if err := s.saveRecord(newer); err != nil {
		t.Fatal(err)
	}
	if got, err := s.load(log); err != nil || len(got) != 1 || got[0].Args.Arguments[0] != "new" {
		t.Errorf("after it was replaced: %+v, %v", got, err)
	}
	for cut := range len(whole) { // of a first write that was not synced
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.load(log); err != nil || len(got) != 0 {
			t.Fatalf("cut at byte %d: %+v, %v", cut, got, err)
		}
		if err := s.saveRecord(older); err != nil {
			t.Fatal(err)
		}
		if got, err := s.load(log); err != nil || len(got) != 1 {
			t.Fatalf("after a cut at byte %d: %+v, %v", cut, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp", "new-1"), whole[:5], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir); err == nil {
		t.Error("a state was opened twice")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = open(dir)
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("unfinished writes are left: %v, %v", left, err)
	}
	if err := s.dropRecord(older.Name); err != nil {
		t.Fatal(err)
	}
	if got, err := s.load(log); err != nil || len(got) != 0 {
		t.Errorf("after it was dropped: %+v, %v", got, err)
	}
}

func TestADamagedImageIsNotRun(t *testing.T) {
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	image, err := inspect(nil)
	if err == nil {
		t.Fatalf("nothing is an image: %+v", image)
	}
	if err := s.saveImage([]byte{1, 2}, []byte("not of that digest")); err != nil {
		t.Fatal(err)
	}
	for _, digest := range [][]byte{{1, 2}, {3, 4}} {
		if _, err := s.readImage(digest); err == nil || !strings.Contains(err.Error(), errDamaged.Error()) {
			t.Errorf("image %x: %v", digest, err)
		}
	}
}

func FuzzHeaderOf(f *testing.F) {
	want := albatross.Header{Sequence: 42, Name: parse("a:b")}
	der, err := albatross.Marshal(albatross.Wire{Header: want, Payload: albatross.Failure(strings.Repeat("x", 300))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(der[:40])
	f.Add([]byte{0x30, 0x84})
	f.Fuzz(func(t *testing.T, message []byte) {
		got := headerOf(message)
		if w, err := albatross.Unmarshal(message); err == nil && got != w.Header {
			t.Errorf("header %+v of a good message, want %+v", got, w.Header)
		}
	})
}
