package host

import (
	"bytes"
	"cmp"
	"compress/zlib"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"fulmar/albatross"
	"fulmar/solo5"
)

// refusal is an error that the client is told word for word: what it asked for cannot be done, and nothing was.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// checkImage says whether the image can be run with args on a machine whose CPUs are cpus, in the words of albatross where it has some.
// and whose targets are targets. It decides alone from what it is given; that bridges exist is seen elsewhere.
func checkImage(image *solo5.Image, args albatross.Args, cpus []int, targets []solo5.Target) error {
	if !slices.Contains(targets, image.Target) {
		return refuse("unsupported solo5 target %s", image.Target)
	}
	if err := image.CheckTarget(image.Target); err != nil {
		return refusal(err.Error())
	}
	nets, blocks := deviceNames(args)
	if !matches(image, solo5.NetDevice, nets) {
		return refuse("specified bridge(s) does not match with the manifest. Devices present in manifest: %s", manifest(image))
	}
	if !matches(image, solo5.BlockDevice, blocks) {
		return refuse("specified block device(s) does not match with the manifest. Devices present in manifest: %s", manifest(image))
	}
	for _, b := range args.Blocks {
		if size := sectorSize(b); size < 512 || size > 1<<15 || size&(size-1) != 0 {
			return refuse("block device %s: a sector of %d bytes is not a power of two from 512 to 32768", b.Name, size)
		}
	}
	if err := image.CheckMemory(args.Memory); err != nil {
		return refusal(err.Error())
	}
	if strange := without(args.CPUIDs, cpus); len(strange) > 0 {
		return refuse("CPUids %s are not allowed by policy", list(strange))
	}
	return nil
}

// deviceNames lists the devices of the manifest that args attach.
func deviceNames(args albatross.Args) (nets, blocks []string) {
	for _, b := range args.Bridges {
		nets = append(nets, b.Netif)
	}
	for _, b := range args.Blocks {
		blocks = append(blocks, b.Name)
	}
	return nets, blocks
}

// matches says whether the names are exactly the image's devices of a type, each once.
func matches(image *solo5.Image, t solo5.DeviceType, names []string) bool {
	var want []string
	for _, d := range image.Devices {
		if d.Type == t {
			want = append(want, d.Name)
		}
	}
	slices.Sort(want)
	return slices.Equal(want, slices.Sorted(slices.Values(names)))
}

// manifest lists the devices of an image for people.
func manifest(image *solo5.Image) string {
	kinds := map[solo5.DeviceType]string{solo5.NetDevice: "net", solo5.BlockDevice: "block"}
	var list []string
	for _, d := range image.Devices {
		list = append(list, fmt.Sprintf("%s %q", kinds[d.Type], d.Name))
	}
	return strings.Join(list, ", ")
}

// arguments is the guest's command line: its name first if it is to be told.
func arguments(name albatross.Name, args albatross.Args) []string {
	if !args.AddName {
		return args.Arguments
	}
	return append([]string{"--name=" + name.Label()}, args.Arguments...)
}

// bridgeName is the host's side of a network device.
func bridgeName(b albatross.Bridge) string {
	return cmp.Or(b.Bridge, b.Netif)
}

// hostDevice is the host's side of a block device, within the unikernel's path.
func hostDevice(b albatross.Block) string {
	return cmp.Or(b.Device, b.Name)
}

// sectorSize is that of a block device, in bytes.
func sectorSize(b albatross.Block) int {
	return cmp.Or(b.SectorSize, 512)
}

// own returns args that share no memory with the request that they came in, which holds an image.
func own(args albatross.Args) albatross.Args {
	args.Bridges = slices.Clone(args.Bridges)
	for i := range args.Bridges {
		args.Bridges[i].MAC = bytes.Clone(args.Bridges[i].MAC)
	}
	return args
}

// loaded is an image that was received or read back, and what it says of itself.
type loaded struct {
	bytes  []byte
	digest []byte
	parts  []part // that are read to run it, which may be few of them: the rest is for debuggers, or nobody
	*solo5.Image
}

// part is a part of an image's file.
type part struct{ start, end int64 }

// noting reads an image and notes what was read of it.
type noting struct {
	image *bytes.Reader
	parts []part
}

// ReadAt implements io.ReaderAt.
func (r *noting) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.image.ReadAt(p, off)
	r.parts = append(r.parts, part{off, off + int64(n)})
	return n, err
}

// load reads an image as a create carries it; at most limit bytes may come out of a compressed one, as far as the ration goes.
func load(cfg albatross.Config, limit int, ration *ration) (loaded, error) {
	if cfg.Typ == albatross.BHyve && len(cfg.Blocks) == 0 {
		return loaded{}, refuse("couldn't find initial block device") // what albatross misses first
	}
	if cfg.Typ != albatross.Solo5 {
		return loaded{}, refuse("unsupported type of unikernel: %s", cfg.Typ)
	}
	data := cfg.Image
	if cfg.Compressed {
		var err error
		if data, err = ration.uncompress(data, limit); err != nil {
			return loaded{}, err
		}
	}
	return inspect(data)
}

// uncompressRefusal words an error of a compressed image as albatross does.
func uncompressRefusal(err error) error {
	if errors.Is(err, zlib.ErrHeader) {
		return refusal("failed to uncompress: Invalid Zlib header")
	}
	return refuse("failed to uncompress: %s", err)
}

// inspect reads what an image says of itself.
func inspect(data []byte) (loaded, error) {
	file := &noting{image: bytes.NewReader(data)}
	image, err := solo5.Read(file, int64(len(data)))
	if errors.Is(err, solo5.ErrNotSolo5) {
		return loaded{}, refuse("error during ELF parsing")
	}
	if err != nil {
		return loaded{}, refuse("error during ELF parsing: %s", err)
	}
	parts := file.parts
	for _, s := range image.Segments {
		parts = append(parts, part{int64(s.Offset), int64(s.Offset + s.FileSize)})
	}
	sum := sha256.Sum256(data)
	return loaded{bytes: data, digest: sum[:], parts: parts, Image: image}, nil
}
