package host

import (
	"testing"

	"fulmar/albatross"
)

// TestWhatIsToldOfAUnikernelAfterItsEnd meets one that has ended, and been replaced or not, since host looked.
func TestWhatIsToldOfAUnikernelAfterItsEnd(t *testing.T) {
	const addr = "10.9.0.2"
	for what, c := range map[string]struct {
		by   string // the address of the one that runs in its place
		want bool   // that the kernel knows addr
	}{
		"nothing stays if nobody has its name":       {"", false},
		"it stays if it is true of its successor":    {addr, true},
		"nothing stays if its successor has another": {"10.9.0.3", false},
	} {
		t.Run(what, func(t *testing.T) {
			l := newLAN(t)
			a, err := albatross.ParseName(":a")
			if err != nil {
				t.Fatal(err)
			}
			instanceOf := func(addr string) *instance {
				args := albatross.Args{Arguments: []string{"--ipv4=" + addr + "/24"}, Bridges: []albatross.Bridge{{Netif: "net0", Bridge: l.br.Name}}}
				return &instance{record: record{Name: a, Args: args}, exited: make(chan struct{}), done: make(chan struct{})}
			}
			ended := instanceOf(addr)
			ended.taps, ended.links = []string{"fulmar-tap7"}, []int{1 << 30} // that is gone
			close(ended.exited)
			l.names = make(map[albatross.Name]*entry)
			if c.by != "" {
				l.unikernel(t, "a", c.by)
				l.names[a] = &entry{inst: instanceOf(c.by)}
			}
			l.meetAll([]*instance{ended}, nil)
			acquaintance, _ := acquaintanceOf(a, ended.record.Args)
			have, err := l.bridges.neighbor(l.br, acquaintance.addr)
			if err != nil || (have != nil) != c.want {
				t.Errorf("the kernel knows %v, %v", have, err)
			}
			if len(l.bridges.unicasts.taps) > len(l.names) {
				t.Errorf("its tap stays in the table: %v", l.bridges.unicasts.taps)
			}
		})
	}
}
