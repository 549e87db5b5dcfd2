package cmdline

import (
	"errors"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0xaa, 0xbb, 0xcc}
	tests := map[string]struct {
		args []string
		want options
	}{
		"an image alone":               {[]string{"web.spt"}, options{memory: 512, image: "web.spt", args: []string{}}},
		"arguments of the unikernel":   {[]string{"web.spt", "--ipv4=10.0.0.2/24", "--mem=1"}, options{memory: 512, image: "web.spt", args: []string{"--ipv4=10.0.0.2/24", "--mem=1"}}},
		"two dashes before the image":  {[]string{"--mem=32", "--", "web.spt", "x"}, options{memory: 32, image: "web.spt", args: []string{"x"}}},
		"two dashes behind the image":  {[]string{"web.spt", "--", "x"}, options{memory: 512, image: "web.spt", args: []string{"--", "x"}}},
		"an image that looks like one": {[]string{"--", "--mem=32"}, options{memory: 512, image: "--mem=32", args: []string{}}},
		"the last memory counts":       {[]string{"--mem=32", "--mem=64", "web.spt"}, options{memory: 64, image: "web.spt", args: []string{}}},
		"a tap by name": {
			[]string{"--net:service=tap0", "web.spt"},
			options{memory: 512, nets: []netOption{{name: "service", tap: "tap0"}}, image: "web.spt", args: []string{}},
		},
		"a tap by descriptor, and addresses in any order": {
			[]string{"--net-mac:b=02:00:00:AA:bb:cc", "--net:a=tap0", "--net:b=@17", "web.spt"},
			options{memory: 512, nets: []netOption{{name: "a", tap: "tap0"}, {name: "b", fd: 17, mac: mac}}, image: "web.spt", args: []string{}},
		},
		"block devices, with a size of sectors in any order": {
			[]string{"--block-sector-size:b=4096", "--block:a=/dev/vg/a", "--block:b=@b=", "web.spt"},
			options{memory: 512, blocks: []blockOption{{name: "a", file: "/dev/vg/a"}, {name: "b", file: "@b=", sector: 4096}}, image: "web.spt", args: []string{}},
		},
		"a tap with an equals sign": {
			[]string{"--net:a=t=p", "web.spt"},
			options{memory: 512, nets: []netOption{{name: "a", tap: "t=p"}}, image: "web.spt", args: []string{}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parse(tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(options{}, netOption{}, blockOption{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"nothing":                          {nil, "the image is missing (see --help)"},
		"options alone":                    {[]string{"--mem=32"}, "the image is missing (see --help)"},
		"two dashes alone":                 {[]string{"--"}, "the image is missing (see --help)"},
		"an unknown option":                {[]string{"--verbose", "web.spt"}, `unknown option "--verbose" (see --help)`},
		"an unknown option with a value":   {[]string{"--x=1", "web.spt"}, `unknown option "--x=1" (see --help)`},
		"a short option":                   {[]string{"-m", "web.spt"}, `unknown option "-m" (see --help)`},
		"memory without a value":           {[]string{"--mem", "32", "web.spt"}, `malformed option "--mem" (see --help)`},
		"memory with an empty value":       {[]string{"--mem=", "web.spt"}, `malformed option "--mem=" (see --help)`},
		"memory with a unit":               {[]string{"--mem=32M", "web.spt"}, "--mem=32M: the memory is a number of MB"},
		"no memory":                        {[]string{"--mem=0", "web.spt"}, "--mem=0: the memory is a number of MB"},
		"less than no memory":              {[]string{"--mem=-1", "web.spt"}, "--mem=-1: the memory is a number of MB"},
		"memory of a device":               {[]string{"--mem:a=1", "web.spt"}, `malformed option "--mem:a=1" (see --help)`},
		"a network without a name":         {[]string{"--net=tap0", "web.spt"}, `malformed option "--net=tap0" (see --help)`},
		"a network without a tap":          {[]string{"--net:a=", "web.spt"}, `malformed option "--net:a=" (see --help)`},
		"a descriptor that is no number":   {[]string{"--net:a=@x", "web.spt"}, `--net:a=@x: "x" is no number of a descriptor`},
		"a negative descriptor":            {[]string{"--net:a=@-3", "web.spt"}, `--net:a=@-3: "-3" is no number of a descriptor`},
		"a descriptor too large":           {[]string{"--net:a=@2147483648", "web.spt"}, `--net:a=@2147483648: "2147483648" is no number of a descriptor`},
		"standard output as a descriptor":  {[]string{"--net:a=@1", "web.spt"}, "--net:a=@1: descriptor 1 is a standard stream"},
		"an address that is none":          {[]string{"--net:a=t", "--net-mac:a=02:00", "web.spt"}, "--net-mac:a=02:00: the address is six bytes such as 02:00:00:00:00:01"},
		"an address of eight bytes":        {[]string{"--net:a=t", "--net-mac:a=02:00:00:00:00:00:00:00", "web.spt"}, "--net-mac:a=02:00:00:00:00:00:00:00: the address is six bytes such as 02:00:00:00:00:01"},
		"an address without its network":   {[]string{"--net-mac:a=02:00:00:00:00:01", "web.spt"}, "--net-mac:a is given without --net:a"},
		"a block device without a name":    {[]string{"--block=file", "web.spt"}, `malformed option "--block=file" (see --help)`},
		"a block device without a file":    {[]string{"--block:disk=", "web.spt"}, `malformed option "--block:disk=" (see --help)`},
		"a sector size that is no number":  {[]string{"--block:a=f", "--block-sector-size:a=4k", "web.spt"}, "--block-sector-size:a=4k: the size of a sector is a number of bytes"},
		"a sector size without its device": {[]string{"--block-sector-size:a=512", "web.spt"}, "--block-sector-size:a is given without --block:a"},
		"help before what else is wrong":   {[]string{"--verbose", "--help"}, errHelp.Error()},
		"version before what else is here": {[]string{"--mem=x", "--version", "web.spt"}, errVersion.Error()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := parse(tt.args)
			if err == nil {
				t.Fatalf("was read: %+v", o)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := parse([]string{"web.spt", "--version"}); errors.Is(err, errVersion) {
		t.Error("an argument of the unikernel was taken for an option")
	}
}
