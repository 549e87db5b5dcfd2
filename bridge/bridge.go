// Package bridge keeps the hardware address of a bridge as it is.
//
// A bridge that was not given one explicitly takes the lowest of its ports, so its address changes when a port comes or
// goes, and who has the old one in his cache is cut off.
package bridge

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// given is the kernel's word for an address that was set explicitly (NET_ADDR_SET of include/uapi/linux/netdevice.h).
const given = 3

// Pin gives a bridge explicitly the address that it has, if it has one and was not given it already: whenever the kernel is
// given an address, even the same, it forgets all neighbors on the bridge, and asks everybody there for each of them anew.
func Pin(h *netlink.Handle, link netlink.Link) error {
	mac := link.Attrs().HardwareAddr
	if slices.Equal(mac, make(net.HardwareAddr, len(mac))) || pinned("/sys", link) {
		return nil
	}
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("pin the address of bridge %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// pinned reports whether a device was given the address that it has. It does not know where sysfs is not that of the
// device's network namespace.
func pinned(sysfs string, link netlink.Link) bool {
	read := func(attribute string) string {
		text, _ := os.ReadFile(filepath.Join(sysfs, "class/net", link.Attrs().Name, attribute)) // no text, no knowledge
		return strings.TrimSpace(string(text))
	}
	return read("ifindex") == strconv.Itoa(link.Attrs().Index) && read("address") == link.Attrs().HardwareAddr.String() &&
		read("addr_assign_type") == strconv.Itoa(given)
}
