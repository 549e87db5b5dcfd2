package host

import (
	"strings"

	"fulmar/albatross"
)

// blockName is the name of the block device of the host that a unikernel means by b. It is false if there can be none of that name.
func blockName(unikernel albatross.Name, b albatross.Block) (albatross.Name, bool) {
	name, err := albatross.MakeName(append(unikernel.Path().Labels(), strings.ToLower(hostDevice(b)))...)
	return name, err == nil
}

// checkBlocks says whether a unikernel may have its block devices.
func (r *resources) checkBlocks(unikernel albatross.Name, args albatross.Args) error {
	mine := make(map[albatross.Name]bool)
	for _, b := range args.Blocks {
		name, ok := blockName(unikernel, b)
		if _, there := r.blocks[name]; !ok || !there {
			return refuse("block device %s:%s not found", unikernel.Path(), hostDevice(b))
		}
		if mine[name] || r.busy[name] || r.usedBy(name, unikernel) {
			return refuse("block device %s is in use", name)
		}
		mine[name] = true
	}
	return nil
}

// usedBy says whether a unikernel, other than but, has a block device.
func (r *resources) usedBy(block, but albatross.Name) bool {
	for unikernel, args := range r.booked {
		for _, b := range args.Blocks {
			if name, _ := blockName(unikernel, b); name == block && unikernel != but {
				return true
			}
		}
	}
	return false
}

// checkBlock says whether a block device of so many MB may be made.
func (r *resources) checkBlock(name albatross.Name, size int) error {
	if _, there := r.blocks[name]; there {
		return refusal("block device with same name already exists")
	}
	if size <= 0 || size > blockMax {
		return refusal("overflow while computing bytes")
	}
	for _, path := range r.above(name.Path()) {
		p, used := r.policies[path], r.blockUsed(path)
		if p.Block == nil || size > *p.Block-used {
			return refuse("a block device of %d MB is not allowed by policy (%d MB, used %d MB)", size, blockLimit(p), used)
		}
	}
	return nil
}

// blockMax is the size in MB of the largest block device: as many bytes as a file can have.
const blockMax = 1<<43 - 1

// take has a block device to what, which is named for the client: nobody else uses it until it is given back.
func (r *resources) take(name albatross.Name, what string) error {
	if _, there := r.blocks[name]; !there {
		return refuse("%s block: not found", what)
	}
	if r.busy[name] || r.usedBy(name, albatross.Name{}) {
		return refuse("%s block: is in use", what)
	}
	r.busy[name] = true
	return nil
}

// blockUsed is the size in MB of all block devices in a path.
func (r *resources) blockUsed(path albatross.Path) (sum int) {
	for name, size := range r.blocks {
		if path.Contains(name.Path()) {
			sum += size
		}
	}
	return sum
}

// blockLimit is what a policy allows, in MB.
func blockLimit(p albatross.Policy) int {
	if p.Block == nil {
		return 0
	}
	return *p.Block
}
