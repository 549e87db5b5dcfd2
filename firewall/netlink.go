package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eventGroup is the multicast group of nftables' changes (NFNLGRP_NFTABLES).
const eventGroup = 7

// policyDrop is the policy of a chain that drops what no rule of its accepts (NF_DROP).
const policyDrop = 0

// attempts is how often a list of chains is read before its changing is an error.
const attempts = 20

// Redirected reports whether the kernel still leads clients to a publication, by a chain of iptables or by an element of our
// own table. The addresses in it do not matter. It runs no program, and asks for what it is about: of a thousand stacks there are thousands.
func Redirected(p Publication) (bool, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4})
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(tableNAT)))
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chainOf(p.Generation))))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	for key := range p.redirects() {
		if !errors.Is(err, unix.ENOENT) {
			break
		}
		var owner string
		if owner, err = ownerOf(key); err == nil && owner != p.Name() {
			err = unix.ENOENT // it leads to another one
		}
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("look for the redirect of %s: %w", p.Name(), err)
}

// ownerOf gives the deployment that an element of our own table is for. That there is none is [unix.ENOENT].
func ownerOf(key item) (string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4})
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(tableOwn)))
	req.AddData(nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(key.set)))
	list := nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, nil).
		AddRtAttr(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, nil).AddRtAttr(unix.NFTA_DATA_VALUE, key.bytes())
	req.AddData(list)
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return "", err
	}
	for _, m := range messages {
		value := m[min(nl.SizeofNfgenmsg, len(m)):]
		for _, kind := range []uint16{unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM, unix.NFTA_SET_ELEM_USERDATA} {
			attrs, err := nl.ParseRouteAttrAsMap(value)
			if err != nil {
				return "", err
			}
			value = attrs[kind].Value
		}
		if owner, ok := userdata.GetString(value, userdata.NFTNL_UDATA_SET_ELEM_COMMENT); ok {
			return owner, nil
		}
	}
	return "", nil
}

// Forbidding reads which chains of nftables, of tables that iptables knows nothing of, drop what is forwarded unless a
// rule of theirs accepts it. What is accepted by our rules must pass them too. They are named as in "inet firewalld
// filter_FORWARD".
func Forbidding() ([]string, error) {
	all, err := chains(unix.NFPROTO_UNSPEC)
	families := map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_INET: "inet"}
	var found []string
	for _, c := range all {
		family, table := families[c.family], c.text(unix.NFTA_CHAIN_TABLE)
		if family != "" && (family != "ip" || table != tableFilter) && c.hook() == unix.NF_INET_FORWARD && c.number(unix.NFTA_CHAIN_POLICY) == policyDrop {
			found = append(found, family+" "+table+" "+c.text(unix.NFTA_CHAIN_NAME))
		}
	}
	slices.Sort(found)
	return found, err
}

// chain is a chain of nftables.
type chain struct {
	family uint8
	attrs  map[uint16]syscall.NetlinkRouteAttr
}

func (c chain) text(kind uint16) string { return nl.BytesToString(c.attrs[kind].Value) }

func (c chain) number(kind uint16) int64 { return bigEndian(c.attrs[kind].Value) }

// hook is where the chain is called from, or -1.
func (c chain) hook() int64 {
	hook, err := nl.ParseRouteAttrAsMap(c.attrs[unix.NFTA_CHAIN_HOOK].Value)
	if err != nil {
		return -1
	}
	return bigEndian(hook[unix.NFTA_HOOK_HOOKNUM].Value)
}

// chains reads the chains of a family. A change in the middle of it makes it begin again.
func chains(family uint8) ([]chain, error) {
	for range attempts {
		var all []chain
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
			if len(message) < nl.SizeofNfgenmsg {
				return true
			}
			if attrs, err := nl.ParseRouteAttrAsMap(message[nl.SizeofNfgenmsg:]); err == nil {
				all = append(all, chain{message[0], attrs})
			}
			return true
		})
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the chains of the firewall: %w", err)
		}
		return all, nil
	}
	return nil, fmt.Errorf("read the chains of the firewall: they change without end")
}

// bigEndian reads a number of nftables, or nothing as -1.
func bigEndian(b []byte) int64 {
	if len(b) != 4 {
		return -1
	}
	return int64(binary.BigEndian.Uint32(b))
}

// Watch calls changed with the process of every change of the firewall but for what is about bridges alone, and with 0 when
// changes were missed, until ctx ends, which is no error. The process is named as the first process namespace of the machine knows it. Watch calls
// listening once, when nothing escapes it any more.
func Watch(ctx context.Context, listening func(), changed func(pid int)) error {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, eventGroup)
	if err != nil {
		return fmt.Errorf("listen to changes of the firewall: %w", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	defer func() {
		if stop() {
			socket.Close()
		}
	}()
	listening()
	first, bridges := true, false // whether nothing was said of this change yet, and whether all that was said of this change is about bridges
	for {
		messages, _, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			first, bridges = true, false
			changed(0)
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("listen to changes of the firewall: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				if !bridges {
					changed(process(m.Data))
				}
				first, bridges = true, false
				continue
			}
			bridges = (first || bridges) && len(m.Data) > 0 && m.Data[0] == unix.NFPROTO_BRIDGE
			first = false
		}
	}
}

// process gives the process that made a generation of the firewall, or 0.
func process(message []byte) int {
	if len(message) < nl.SizeofNfgenmsg {
		return 0
	}
	attrs, err := nl.ParseRouteAttrAsMap(message[nl.SizeofNfgenmsg:])
	if err != nil {
		return 0
	}
	return int(max(0, bigEndian(attrs[unix.NFTA_GEN_PROC_PID].Value)))
}
