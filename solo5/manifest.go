package solo5

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
)

// Layout of the manifest (Solo5's mft_abi.h): a header of version and number of
// entries, then the entries. In the note 4 bytes come before it, because the
// structure is aligned to 8 behind a note header of 20.
const (
	manifestPad     = 4
	manifestHeader  = 8
	manifestVersion = 1
	maxEntries      = 64
	reservedFirst   = 1 << 30 // type of the entry 0, which is no device

	entrySize       = 104
	entryNameSize   = 68 // with a NUL at the end
	entryTypeAt     = 68
	entryMACAt      = 72
	entryMTUAt      = 78
	entryCapacityAt = 72
	entrySectorAt   = 80
	entryFDAt       = 88
	entryAttachedAt = 96
)

// decodeManifest decodes the content of the MFT1 note.
func decodeManifest(desc []byte) ([]Device, error) {
	bad := func(format string, args ...any) ([]Device, error) {
		return nil, &ImageError{"manifest", fmt.Sprintf(format, args...)}
	}
	if desc == nil {
		return bad("the image has none")
	}
	if len(desc) < manifestPad+manifestHeader {
		return bad("the note has only %d bytes", len(desc))
	}
	desc = desc[manifestPad:]
	version, count := binary.LittleEndian.Uint32(desc), binary.LittleEndian.Uint32(desc[4:])
	switch {
	case version != manifestVersion:
		return bad("version %d is not supported", version)
	case count == 0 || count > maxEntries:
		return bad("there are %d entries instead of 1 to %d", count, maxEntries)
	case len(desc) != manifestHeader+int(count)*entrySize:
		return bad("%d entries do not fill %d bytes", count, len(desc)-manifestHeader)
	}
	var devices []Device
	for n := range int(count) {
		d, problem := decodeEntry(desc[manifestHeader+n*entrySize:][:entrySize], n)
		if problem == "" && n > 0 {
			problem = twice(devices, d)
		}
		if problem != "" {
			return nil, &ImageError{fmt.Sprintf("manifest: entry %d", n), problem}
		}
		if n > 0 {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// decodeEntry decodes the n-th entry and says what is wrong with it, "" if
// nothing is. Entry 0 is reserved and has no name.
func decodeEntry(e []byte, n int) (d Device, problem string) {
	name, _, ended := bytes.Cut(e[:entryNameSize], []byte{0})
	kind := binary.LittleEndian.Uint32(e[entryTypeAt:])
	d = Device{Name: string(name), Type: DeviceType(kind), Handle: n}
	switch {
	case !ended:
		return d, fmt.Sprintf("name is longer than %d bytes", entryNameSize-1)
	case e[entryAttachedAt] != 0:
		return d, "the device says that it is attached already"
	case n == 0 && (kind != reservedFirst || d.Name != ""):
		return d, "the first entry is not the reserved one"
	case n == 0:
		return d, ""
	case d.Type != BlockDevice && d.Type != NetDevice:
		return d, fmt.Sprintf("there is no device type %d", kind)
	case d.Name == "":
		return d, "name is empty"
	case !alphanumeric(d.Name):
		return d, fmt.Sprintf("name %q has other characters than letters and digits", d.Name)
	}
	return d, ""
}

func twice(devices []Device, d Device) string {
	for _, other := range devices {
		if other.Type == d.Type && other.Name == d.Name {
			return fmt.Sprintf("name %q is that of entry %d", d.Name, other.Handle)
		}
	}
	return ""
}

func alphanumeric(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// An attachment is what a tender adds to the entry of a device. Its fields are
// exported because it is part of the order that an hvt tender is given.
type attachment struct {
	Device DeviceType
	FD     int

	MAC net.HardwareAddr // of a network device
	MTU int

	Capacity uint64 // of a block device, in bytes, a multiple of the sector size
	Sector   int
}

// encodeManifest makes the manifest that the guest gets: its own, made anew of
// what was checked, with the devices filled in by handle.
func encodeManifest(devices []Device, attached map[int]attachment) []byte {
	m := make([]byte, manifestHeader+(len(devices)+1)*entrySize)
	binary.LittleEndian.PutUint32(m, manifestVersion)
	binary.LittleEndian.PutUint32(m[4:], uint32(len(devices)+1))
	binary.LittleEndian.PutUint32(m[manifestHeader+entryTypeAt:], reservedFirst)
	for _, d := range devices {
		e := m[manifestHeader+d.Handle*entrySize:][:entrySize]
		copy(e, d.Name)
		binary.LittleEndian.PutUint32(e[entryTypeAt:], uint32(d.Type))
		if a, ok := attached[d.Handle]; ok {
			a.encode(e)
		}
	}
	return m
}

// encode fills an entry in.
func (a attachment) encode(e []byte) {
	if a.Device == BlockDevice {
		binary.LittleEndian.PutUint64(e[entryCapacityAt:], a.Capacity)
		binary.LittleEndian.PutUint16(e[entrySectorAt:], uint16(a.Sector))
	} else {
		copy(e[entryMACAt:entryMTUAt], a.MAC)
		binary.LittleEndian.PutUint16(e[entryMTUAt:], uint16(a.MTU))
	}
	binary.LittleEndian.PutUint32(e[entryFDAt:], uint32(a.FD))
	e[entryAttachedAt] = 1
}
