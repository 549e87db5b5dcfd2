package conntrack

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Message types of the connection table's subsystem.
const (
	messageGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_GET
	messageDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_DELETE

	// A filtered delete carries version 1: only then does the kernel heed the message's address family.
	versionFamily = 1
)

// dump calls each for every entry that m matches.
func dump(m match, each func(flow)) error {
	visit := func(message []byte) bool {
		if f := parse(message); m.holds(f) {
			each(f)
		}
		return true
	}
	err := request(messageGet, unix.NLM_F_DUMP, m.attributes()).ExecuteIter(unix.NETLINK_NETFILTER, 0, visit)
	if refused(err) {
		err = request(messageGet, unix.NLM_F_DUMP, nil).ExecuteIter(unix.NETLINK_NETFILTER, 0, visit)
	}
	return err
}

// remove deletes every entry that m matches.
func remove(m match) error {
	_, err := request(messageDelete, unix.NLM_F_ACK, m.attributes()).Execute(unix.NETLINK_NETFILTER, 0)
	if refused(err) {
		return removeEach(m)
	}
	return err
}

// removeEach is remove for a kernel that does not filter deletes.
func removeEach(m match) error {
	var found []flow
	if err := dump(m, func(f flow) { found = append(found, f) }); err != nil {
		return err
	}
	for _, f := range found {
		name := []*nl.RtAttr{nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, f.original)}
		if len(f.id) > 0 {
			name = append(name, nl.NewRtAttr(ctaID, f.id))
		}
		_, err := request(messageDelete, unix.NLM_F_ACK, name).Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) { // ended by itself meanwhile
			return fmt.Errorf("delete the flow %s to %s: %w", f.source, f.destination, err)
		}
	}
	return nil
}

func request(kind, flags int, attrs []*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: versionFamily})
	for _, attr := range attrs {
		req.AddData(attr)
	}
	return req
}

// refused reports whether a kernel answers like this to a filter that it does not know.
func refused(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}
