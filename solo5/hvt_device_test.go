package solo5_test

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fulmar/solo5"
	"fulmar/solo5/solo5test"
)

func TestHVTPackets(t *testing.T) {
	needKVM(t)
	inNamespace(t)
	newTap(t, "tap0", 1400)
	newTap(t, "tap1", 9000)
	macs := []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	nets := []solo5.Net{attached(t, "net1", "tap1", macs[1]), attached(t, "net0", "tap0", macs[0])}
	tender := prepareHVT(t, solo5.Guest{Image: open(t, solo5test.BuildHVT(t, solo5test.Features{Nets: 2})), Memory: 4, Nets: nets, Args: []string{"echo", "5"}})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, cmd)
	started(t, cmd, "up")
	tender.Close()
	for _, n := range nets {
		n.Tap.Close() // the guest has its own
	}
	wires := []int{cable(t, "tap0"), cable(t, "tap1")}
	echoed(t, wires[0], macs[0], 60)
	echoed(t, wires[1], macs[1], 60)
	echoed(t, wires[0], macs[0], 1414)
	echoed(t, wires[1], macs[1], 3000)
	echoed(t, wires[0], macs[0], 14)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestHVTManifestIsHandedOver(t *testing.T) {
	needKVM(t)
	inNamespace(t)
	newTap(t, "tap0", 1400)
	tender := prepareHVT(t, solo5.Guest{
		Image: open(t, solo5test.BuildHVT(t, solo5test.Features{Nets: 1, Blocks: 1})), Memory: 4, Args: []string{"boot"},
		Nets:   []solo5.Net{attached(t, "net0", "tap0", net.HardwareAddr{2, 1, 2, 3, 4, 5})},
		Blocks: []solo5.Block{{Name: "disk0", File: openDisk(t, disk(t, 8192)), SectorSize: 4096}},
	})
	console, _, end := ran(t, tender)
	_, manifest, _ := strings.Cut(console, "initialized\n")
	want := "entry=0\n=1073741824\nentry=1\nnet0=2\nmac=2\nmac=1\nmac=2\nmac=3\nmac=4\nmac=5\nmtu=1400\nattached=1\n" +
		"entry=2\ndisk0=1\ncapacity=8192\nblock_size=4096\nattached=1\nfeatures=0\n"
	if manifest != want || end != "exit status 0" {
		t.Errorf("%s, manifest:\n%s\ninstead of\n%s", end, manifest, want)
	}
}

func TestHVTNetworkCalls(t *testing.T) {
	needKVM(t)
	inNamespace(t)
	newTap(t, "tap0", 1500)
	image := solo5test.BuildHVT(t, solo5test.Features{Nets: 1})
	service := attached(t, "net0", "tap0", nil) // here, since a subtest is in another namespace
	tests := map[string]struct{ args, console, complaint string }{
		"a frame is sent":                       {"call 6 1 b0 60 f255 r3", "ret=0\nbyte=255\n", ""},
		"a frame that is too short is not":      {"call 6 1 b0 13 r3", "ret=3\nbyte=0\n", ""},
		"no frame is not":                       {"call 6 1 0 0 r3", "ret=3\nbyte=0\n", ""},
		"a frame at the end of memory":          {"call 6 1 e4036 60 r3", "ret=0\nbyte=0\n", ""},
		"a frame over the end of memory":        {"call 6 1 e4037 60 r3", "", "net_write an address that is not its memory: 60 bytes at 0x3fffc5"},
		"a frame of all there is":               {"call 6 1 b0 18446744073709551615 r3", "", "net_write an address that is not its memory: 18446744073709551615 bytes at 0x"},
		"the page tables are not sent":          {"call 6 1 8192 60 r3", "", "net_write an address that is not its memory: 60 bytes at 0x2000"},
		"another device":                        {"call 6 2 b0 60 r3", "ret=2\nbyte=0\n", ""},
		"no packet is no error":                 {"call 7 1 b0 1514 r3", "ret=1\nbyte=0\n", ""},
		"a packet into code":                    {"call 7 1 1048576 1514 r3", "", "net_read an address that is not its memory: 1514 bytes at 0x100000"},
		"a packet into the boot information":    {"call 7 1 65536 1514 r3", "", "net_read an address that is not its memory: 1514 bytes at 0x10000"},
		"a packet into the page tables":         {"call 7 1 8192 1514 r3", "", "net_read an address that is not its memory: 1514 bytes at 0x2000"},
		"a packet over the end of memory":       {"call 7 1 e4000 1514 r3", "", "net_read an address that is not its memory: 1514 bytes at 0x3fffa0"},
		"a packet at an address that wraps":     {"call 7 1 18446744073709551600 1514 r3", "", "net_read an address that is not its memory: 1514 bytes at 0xfffffffffffffff0"},
		"a packet read of a block device":       {"call 5 1 0 b0 512 r4", "ret=2\nbyte=0\n", ""},
		"a poll of no time finds nothing ready": {"call 3 0 99 r1", "ret=0\nbyte=0\n", ""},
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", []byte("1"), 0o644); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tender := prepareHVT(t, solo5.Guest{Image: open(t, image), Memory: 4, Nets: []solo5.Net{service}, Args: strings.Fields(tt.args)})
			defer tender.Close()
			console, complaint, _ := ran(t, tender)
			if console != tt.console || tt.complaint == "" && complaint != "" || !strings.Contains(complaint, tt.complaint) {
				t.Errorf("%q and %q instead of %q and %q", console, complaint, tt.console, tt.complaint)
			}
		})
	}
}

func TestHVTGuestEndsWhenItsTapIsTakenAway(t *testing.T) {
	needKVM(t)
	inNamespace(t)
	newTap(t, "tap0", 1500)
	tender := prepareHVT(t, solo5.Guest{
		Image: open(t, solo5test.BuildHVT(t, solo5test.Features{Nets: 1})), Memory: 4, Args: []string{"echo", "5"},
		Nets: []solo5.Net{attached(t, "net0", "tap0", nil)},
	})
	cmd, err := tender.Command()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	started(t, cmd, "up")
	link, err := netlink.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(stderr.String(), "fulmar-hvt: receive from the network device of handle 1: ") {
		t.Errorf("%s, %q", cmd.ProcessState, stderr.String())
	}
}

func TestHVTBlockDevice(t *testing.T) {
	needKVM(t)
	image := solo5test.BuildHVT(t, solo5test.Features{Blocks: 1})
	const read, write, refused = "5 1 ", "4 1 ", "ret=2\nbyte=7\n"
	// Of six sectors of 512, or three of 1024. The words are offset, address
	// and length; 7 is what the buffer was filled with.
	tests := map[string]struct {
		sector             int
		args               string
		console, complaint string
	}{
		"a sector is read":                       {512, read + "1024 b0 512", "ret=0\nbyte=99\n", ""},
		"the last sector is read":                {512, read + "2560 b0 512", "ret=0\nbyte=102\n", ""},
		"all sectors are read":                   {512, read + "0 b0 3072", "ret=0\nbyte=97\n", ""},
		"no sector is read":                      {512, read + "0 0 0", "ret=0\nbyte=7\n", ""},
		"a large sector is read":                 {1024, read + "2048 b0 1024", "ret=0\nbyte=101\n", ""},
		"sectors are written":                    {512, write + "512 b0 1024", "ret=0\nbyte=7\n", ""},
		"a sector is written from memory's end":  {512, write + "512 e3584 512", "ret=0\nbyte=7\n", ""},
		"less than a sector":                     {512, read + "0 b0 511", refused, ""},
		"more than a sector":                     {512, read + "0 b0 513", refused, ""},
		"half a large sector":                    {1024, read + "0 b0 512", refused, ""},
		"between two sectors":                    {512, read + "256 b0 512", refused, ""},
		"behind the end":                         {512, read + "3072 b0 512", refused, ""},
		"nothing behind the end":                 {512, read + "3072 b0 0", refused, ""},
		"over the end":                           {512, read + "2560 b0 1024", refused, ""},
		"more than there is":                     {512, read + "0 b0 3584", refused, ""},
		"an offset that wraps around":            {512, read + "18446744073709551104 b0 1024", refused, ""},
		"a length that wraps around":             {512, read + "1024 b0 18446744073709551104", refused, ""},
		"written over the end":                   {512, write + "2560 b0 1024", refused, ""},
		"written behind the end":                 {512, write + "3072 b0 512", refused, ""},
		"written far behind the end":             {512, write + "1099511627776 b0 512", refused, ""},
		"written between two sectors":            {512, write + "100 b0 512", refused, ""},
		"written before the start":               {512, write + "18446744073709551104 b0 512", refused, ""},
		"read into code":                         {512, read + "0 1048576 512", "", "block_read an address that is not its memory: 512 bytes at 0x100000"},
		"read into the page tables":              {512, read + "0 8192 512", "", "block_read an address that is not its memory: 512 bytes at 0x2000"},
		"read over the end of memory":            {512, read + "0 e3585 512", "", "block_read an address that is not its memory: 512 bytes at 0x3ffe01"},
		"read far behind memory":                 {512, read + "0 1099511627776 512", "", "block_read an address that is not its memory: 512 bytes at 0x10000000000"},
		"written from the page tables":           {512, write + "0 8192 512", "", "block_write an address that is not its memory: 512 bytes at 0x2000"},
		"written from an address that wraps":     {512, write + "0 18446744073709551615 512", "", "block_write an address that is not its memory: 512 bytes at 0xffffffffffffffff"},
		"another device":                         {512, "5 2 0 b0 512", refused, ""},
		"the reserved device":                    {512, "5 0 0 b0 512", refused, ""},
		"a handle that is right in its low half": {512, "5 4294967297 0 b0 512", refused, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := disk(t, 6*512)
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tender := prepareHVT(t, solo5.Guest{
				Image: open(t, image), Memory: 4, Args: []string{"call", tt.args, "f7", "r4"},
				Blocks: []solo5.Block{{Name: "disk0", File: openDisk(t, path), SectorSize: tt.sector}},
			})
			console, complaint, end := ran(t, tender)
			if console != tt.console || tt.complaint == "" && complaint != "" || !strings.Contains(complaint, tt.complaint) {
				t.Errorf("%q and %q, %s, instead of %q and %q", console, complaint, end, tt.console, tt.complaint)
			}
			switch tt.args {
			case write + "512 b0 1024":
				copy(want[512:], bytes.Repeat([]byte{7}, 1024))
			case write + "512 e3584 512": // the stack: the last word holds nothing, and the rest is not known
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				copy(want[512:1024-8], got[512:1024-8])
				clear(want[1024-8 : 1024])
			}
			checkDisk(t, path, want)
		})
	}
}

func TestHVTGuestIsToldThatItsDiskIsGone(t *testing.T) {
	needKVM(t)
	path := disk(t, 4096)
	tender := prepareHVT(t, solo5.Guest{
		Image: open(t, solo5test.BuildHVT(t, solo5test.Features{Blocks: 1})), Memory: 4, Args: []string{"call 5 1 2048 b0 512 r4"},
		Blocks: []solo5.Block{{Name: "disk0", File: openDisk(t, path)}},
	})
	if err := os.Truncate(path, 1024); err != nil {
		t.Fatal(err)
	}
	if console, complaint, end := ran(t, tender); console != "ret=3\nbyte=0\n" || end != "exit status 0" {
		t.Errorf("%q, %q, %s", console, complaint, end)
	}
}

// A console that does not block and is full has no effect but that text is lost.
func TestHVTConsoleThatNobodyReadsStopsNoGuest(t *testing.T) {
	needKVM(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]) })
	console := os.NewFile(uintptr(pipe[1]), "console")
	t.Cleanup(func() { console.Close() })
	for text, err := make([]byte, 4096), error(nil); err == nil; _, err = unix.Write(pipe[1], text) {
	}
	tender := prepareHVT(t, solo5.Guest{
		Image: open(t, solo5test.BuildHVT(t, solo5test.Features{})), Memory: 4, Args: []string{"hello", "3"},
	})
	cmd, gate, err := tender.GatedCommand()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	cmd.Stdout = console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pipe[1], true); err != nil { // whatever Start made of it
		t.Fatal(err)
	}
	if err := gate.Open(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := cmd.ProcessState.String(); got != "exit status 3" {
		t.Errorf("ended with %s", got)
	}
}

func BenchmarkHVTStartToExit(b *testing.B) {
	needKVM(b)
	image := open(b, solo5test.BuildHVT(b, solo5test.Features{}))
	benchmarkStartToExit(b, func() *solo5.Tender {
		return prepareHVT(b, solo5.Guest{Image: image, Memory: 32, Args: []string{"hello"}})
	})
}
