package builder

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
	"fulmar/solo5"
)

func TestNetDevice(t *testing.T) {
	net := func(name string) solo5.Device { return solo5.Device{Name: name, Type: solo5.NetDevice} }
	block := solo5.Device{Name: "storage", Type: solo5.BlockDevice}
	for name, c := range map[string]struct {
		named   string
		devices []solo5.Device
		want    string
		err     string
	}{
		"the only one needs no name":          {"", []solo5.Device{net("service")}, "service", ""},
		"the only one may be named":           {"service", []solo5.Device{net("service")}, "service", ""},
		"one that is not there":               {"uplink", nil, "", `its manifest has no net device "uplink", which the request names`},
		"no device at all":                    {"", nil, "", "its manifest has no net device"},
		"two, of which none is named":         {"", []solo5.Device{net("a"), net("b")}, "", `its manifest has devices that the request does not name: net device "a", net device "b"`},
		"two, of which one is named":          {"a", []solo5.Device{net("a"), net("b")}, "", `its manifest has devices that the request does not name: net device "b"`},
		"another name than the one it has":    {"uplink", []solo5.Device{net("service")}, "", `its manifest has no net device "uplink", which the request names`},
		"a block device that nobody attaches": {"", []solo5.Device{net("service"), block}, "", `its manifest has devices that the request does not name: block device "storage"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := netDevice(c.named, c.devices)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != c.want || text != c.err {
				t.Errorf("got %q, %q, want %q, %q", got, text, c.want, c.err)
			}
		})
	}
}

func TestFit(t *testing.T) {
	digest := strings.Repeat("0123456789abcdef", 4)
	good := func() image {
		return image{digest: digest, size: 4711, solo5: &solo5.Image{Target: solo5.SPT, Devices: []solo5.Device{{Name: "service", Type: solo5.NetDevice}}}}
	}
	spt := &fulmarv1.Host{Name: "host1", Targets: []string{"spt"}}
	spec := &fulmarv1.UnitSpec{Name: "web", Memory: 32}
	want := &fulmarv1.Unit{Name: "web", Image: digest, ImageSize: 4711, Target: "spt", Device: "service"}
	got, err := fit(spec, good(), spt)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("unit (-want +got):\n%s", diff)
	}
	for name, c := range map[string]struct {
		spec   *fulmarv1.UnitSpec
		change func(*image)
		host   *fulmarv1.Host
		want   string
	}{
		"a target that the host does not run": {spec, func(i *image) { i.solo5.Target = solo5.HVT }, spt, "image 0123456789ab: its target hvt is not supported by host host1, which runs spt"},
		"a host that runs nothing":            {spec, func(*image) {}, &fulmarv1.Host{Name: "host1"}, "image 0123456789ab: its target spt is not supported by host host1, which runs nothing"},
		"memory too small":                    {&fulmarv1.UnitSpec{Name: "web", Memory: 0}, func(*image) {}, spt, "image 0123456789ab: memory of 0 MB is too small"},
		"a device that is not there":          {&fulmarv1.UnitSpec{Name: "web", Memory: 32, Device: "x"}, func(i *image) { i.solo5.Devices = nil }, spt, "image 0123456789ab: its manifest has no net device"},
	} {
		t.Run(name, func(t *testing.T) {
			i := good()
			c.change(&i)
			_, err := fit(c.spec, i, c.host)
			refusal, ok := messages.AsRefusal(err)
			if !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_IMAGE || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestRoom(t *testing.T) {
	asks := func(units ...*fulmarv1.UnitSpec) *fulmarv1.Content { return &fulmarv1.Content{Units: units} }
	for name, c := range map[string]struct {
		content *fulmarv1.Content
		host    *fulmarv1.Host
		want    string
	}{
		"all that there is":             {asks(&fulmarv1.UnitSpec{Memory: 64, Cpus: []uint32{0, 7}}), &fulmarv1.Host{Cpus: []uint32{0, 1, 7}, MemoryMb: 64}, ""},
		"a host that tells nothing":     {asks(&fulmarv1.UnitSpec{Memory: 1 << 20, Cpus: []uint32{99}}), &fulmarv1.Host{}, ""},
		"no host":                       {asks(), nil, ""},
		"a CPU that is off":             {asks(&fulmarv1.UnitSpec{Name: "a", Cpus: []uint32{2}}), &fulmarv1.Host{Name: "h", Cpus: []uint32{0, 1, 3, 4, 5, 7}}, "unit a: host h has no CPU 2; it has 0-1,3-5,7"},
		"one unit too large":            {asks(&fulmarv1.UnitSpec{Name: "a", Memory: 65}), &fulmarv1.Host{Name: "h", MemoryMb: 64}, "unit a: it asks for 65 MB of memory, and host h has 64 MB"},
		"units that are together large": {asks(&fulmarv1.UnitSpec{Memory: 40}, &fulmarv1.UnitSpec{Memory: 40}), &fulmarv1.Host{Name: "h", MemoryMb: 64}, "the units ask for 80 MB of memory together, and host h has 64 MB"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := room(c.content, c.host); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
