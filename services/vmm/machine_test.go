package vmm

import (
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string][]uint32{
		"0\n": {0}, "0-3\n": {0, 1, 2, 3}, "0,2-3,7": {0, 2, 3, 7},
		"": nil, "x": nil, "3-1": nil, "-1": nil, "0-": nil, "70000": nil, "0,": nil,
	} {
		got, err := parseCPUs(text)
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestThisMachineHasCPUsAndMemory(t *testing.T) {
	m, err := thisMachine()
	if err != nil || len(m.CPUs) < runtime.NumCPU() || m.Memory < 64 || m.Memory > 1<<26 {
		t.Errorf("got %+v, %v", m, err)
	}
}
