package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// eventGroup is the multicast group of nftables' changes (NFNLGRP_NFTABLES).
const eventGroup = 7

// Redirected reads which generations the kernel still leads clients to. It runs no program.
func Redirected() (map[uint64]bool, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4})
	found := map[uint64]bool{}
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
		table, chain := attribute(message, unix.NFTA_CHAIN_TABLE), attribute(message, unix.NFTA_CHAIN_NAME)
		if generation, ok := generationOf(nl.BytesToString(chain)); ok && nl.BytesToString(table) == tableNAT {
			found[generation] = true
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read the chains of table %s: %w", tableNAT, err)
	}
	return found, nil
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
			pid := attribute(m.Data, unix.NFTA_GEN_PROC_PID)
			if len(pid) != 4 {
				changed(0)
				continue
			}
			changed(int(binary.BigEndian.Uint32(pid)))
		}
	}
}

// attribute gives an attribute of a message of nftables, or nothing.
func attribute(message []byte, kind uint16) []byte {
	if len(message) < nl.SizeofNfgenmsg {
		return nil
	}
	attrs, err := nl.ParseRouteAttrAsMap(message[nl.SizeofNfgenmsg:])
	if err != nil {
		return nil
	}
	return attrs[kind].Value
}
