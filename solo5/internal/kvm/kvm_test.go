package kvm

import (
	"testing"
	"unsafe"
)

// The kernel's own sizes are part of the requests' numbers.
func TestStructuresHaveTheSizesThatTheRequestsName(t *testing.T) {
	size := func(request uintptr) uintptr { return request >> 16 & 0x3fff }
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"kvm_userspace_memory_region", unsafe.Sizeof(memoryRegion{}), size(setUserMemoryRegion)},
		{"kvm_regs", unsafe.Sizeof(Regs{}), size(setRegs)},
		{"kvm_sregs", unsafe.Sizeof(Sregs{}), size(setSregs)},
		{"kvm_cpuid2 without entries", unsafe.Offsetof(cpuid{}.entry), size(setCPUID2)},
	} {
		if tt.got != tt.want {
			t.Errorf("%s has %d bytes instead of %d", tt.name, tt.got, tt.want)
		}
	}
}
