package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eventGroup is the multicast group of nftables' changes (NFNLGRP_NFTABLES).
const eventGroup = 7

// policyDrop is the policy of a chain that drops what no rule of its accepts (NF_DROP).
const policyDrop = 0

// attempts is how often a list of chains is read before its changing is an error.
const attempts = 20

// Redirected reports whether the kernel still leads clients to a generation. It runs no program, and asks for one chain: of a
// thousand stacks there are thousands.
func Redirected(generation uint64) (bool, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4})
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(tableNAT)))
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chainOf(generation))))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("look for the redirect of generation %d: %w", generation, err)
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

// Watch calls changed with the process of every change of the firewall, and with 0 when changes were missed, until ctx
// ends, which is no error. The process is named as the first process namespace of the machine knows it. Watch calls
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
	for {
		messages, _, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed(0)
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("listen to changes of the firewall: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				continue
			}
			changed(process(m.Data))
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
