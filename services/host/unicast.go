package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// unicasts is a table of nftables by which a broadcast of a unikernel that only its bridge can answer goes to the bridge alone: a question for an
// address of the bridge, and what it announces of its own address, of which host tells the others itself when that is news (see [bridges.introduce]).
// One rule writes the bridge's hardware address over that of all, if a map has the tap's index with the address in question.
//
// The table is there as long as anything is in it. Whoever takes it finds it made anew at the next start or end of a unikernel; that it cannot
// be made costs time, and nothing else.
type unicasts struct {
	mu      sync.Mutex
	conn    *nftables.Conn  // for good: to close one after something was deleted takes the kernel 20 ms
	missing error           // why there is no conn
	bridges map[int]gateway // by index: one that is made anew has a new one, and so has a tap
	taps    map[int]speaker
	size    int // elements in the table
	failing bool
}

// gateway is a bridge, with its IPv4 addresses.
type gateway struct {
	mac net.HardwareAddr
	own []netip.Prefix
}

// speaker is a tap of a bridge, behind which is addr, if that is known.
type speaker struct {
	bridge int
	addr   netip.Addr
}

const (
	maxOwn     = 16       // addresses of a bridge that count
	portion    = 1000     // elements in one message, of which none may have 64 KB
	batchBytes = 16 << 20 // of one change: 2,000 elements have 72 KB
	natDest    = -300     // NF_BR_PRI_NAT_DST_BRIDGED of include/uapi/linux/netfilter_bridge.h
)

// newUnicasts opens a netlink socket in the network namespace of the calling thread. That it cannot is told at the first use.
func newUnicasts() *unicasts {
	u := &unicasts{bridges: make(map[int]gateway), taps: make(map[int]speaker)}
	u.conn, u.missing = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetWriteBuffer(batchBytes)
	}))
	return u
}

// close ends what newUnicasts opened, and leaves the table to the unikernels that run on.
func (u *unicasts) close() {
	if u.conn != nil {
		_ = u.conn.CloseLasting()
	}
}

// gateway is what is known of a bridge, which is read if nothing is.
func (u *unicasts) gateway(bridge int, read func() (gateway, error)) (gateway, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a, known := u.bridges[bridge]; known {
		return a, nil
	}
	a, err := read()
	if err == nil {
		u.bridges[bridge] = a
	}
	return a, err
}

// renew reads a bridge again, if it is known.
func (u *unicasts) renew(bridge int, read func() (gateway, error)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	before, known := u.bridges[bridge]
	if !known {
		return nil
	}
	now, err := read()
	if err == nil && slices.Equal(before.own, now.own) && slices.Equal(before.mac, now.mac) {
		return nil
	}
	delete(u.bridges, bridge)
	if err == nil {
		u.bridges[bridge] = now
	}
	return errors.Join(err, u.told(u.make()))
}

// strange says whether any of the interfaces is not a bridge that is known.
func (u *unicasts) strange(interfaces []int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.ContainsFunc(interfaces, func(index int) bool {
		_, known := u.bridges[index]
		return !known
	})
}

// known lists the bridges that are known.
func (u *unicasts) known() []int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Keys(u.bridges))
}

// forget drops what is known of bridges that are gone.
func (u *unicasts) forget(gone func(bridge int) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.bridges, func(bridge int, _ gateway) bool { return gone(bridge) })
}

// note has a tap in the table that is made next.
func (u *unicasts) note(tap int, s speaker) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.taps[tap] = s
}

// add has a tap in the table from now on.
func (u *unicasts) add(tap int, s speaker) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.taps[tap] = s
	elements := u.elements(tap)
	return u.told(u.change((*nftables.Conn).SetAddElements, elements, u.size+len(elements)))
}

// drop takes taps, which are gone, out of the table.
func (u *unicasts) drop(taps ...int) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var gone []nftables.SetElement
	for _, tap := range taps {
		gone = append(gone, u.elements(tap)...)
		delete(u.taps, tap)
	}
	return u.told(u.change((*nftables.Conn).SetDeleteElements, gone, u.size-len(gone)))
}

// remake makes the table anew, as it should be.
func (u *unicasts) remake() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.told(u.make())
}

// told gives an error the first time only, until there was none.
func (u *unicasts) told(err error) error {
	if err != nil && u.failing {
		return nil
	}
	u.failing = err != nil
	return err
}

// change changes elements of the table, which has size of them then. It makes the table anew if it was empty or becomes so, and if the change fails:
// somebody else has taken it, or some of it.
func (u *unicasts) change(how func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, elements []nftables.SetElement, size int) error {
	if len(elements) == 0 {
		return nil
	}
	if u.size == 0 || size <= 0 {
		return u.make()
	}
	err := how(u.conn, unicastMap(), elements)
	if err == nil {
		err = u.conn.Flush()
	}
	if err != nil {
		return u.make()
	}
	u.size = size
	return nil
}

// make replaces the table by one of all taps, at once.
func (u *unicasts) make() error {
	if u.missing != nil {
		return fmt.Errorf("open nftables: %w", u.missing)
	}
	var all []nftables.SetElement
	for tap := range u.taps {
		all = append(all, u.elements(tap)...)
	}
	table := unicastTable()
	u.conn.AddTable(table) // so that there is one to delete
	u.conn.DelTable(table)
	if len(all) > 0 {
		if err := u.fill(all); err != nil {
			return fmt.Errorf("fill table of nftables: %w", err)
		}
	}
	if err := u.conn.Flush(); err != nil {
		return fmt.Errorf("make table of nftables: %w", err)
	}
	u.size = len(all)
	return nil
}

// fill has the next change make the table, with elements.
func (u *unicasts) fill(elements []nftables.SetElement) error {
	table := u.conn.AddTable(unicastTable())
	early := nftables.ChainPriority(natDest - 10) // before others look where it goes
	chain := u.conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &early,
	})
	if err := u.conn.AddSet(unicastMap(), nil); err != nil {
		return err
	}
	u.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: unicastRule()})
	for some := range slices.Chunk(elements, portion) {
		if err := u.conn.SetAddElements(unicastMap(), some); err != nil {
			return err
		}
	}
	return nil
}

// elements are those of a tap.
func (u *unicasts) elements(tap int) []nftables.SetElement {
	s := u.taps[tap]
	a := u.bridges[s.bridge]
	var elements []nftables.SetElement
	for _, target := range targets(s, a) {
		key := binary.BigEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, uint32(tap)), binary.BigEndian.Uint32(target.AsSlice()))
		elements = append(elements, nftables.SetElement{Key: key, Val: a.mac})
	}
	return elements
}

// targets are the addresses of which a speaker asks the gateway alone, each once.
func targets(s speaker, a gateway) []netip.Addr {
	if len(a.mac) != 6 {
		return nil
	}
	var all []netip.Addr
	for _, own := range a.own[:min(len(a.own), maxOwn)] {
		all = append(all, own.Addr())
	}
	if s.addr.IsValid() {
		all = append(all, s.addr)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func unicastTable() *nftables.Table {
	return &nftables.Table{Name: "fulmar", Family: nftables.TableFamilyBridge}
}

// unicastMap has the hardware address by the index of a tap and an IPv4 address.
func unicastMap() *nftables.Set {
	return &nftables.Set{
		Table: unicastTable(), ID: 1, Name: "unicast", IsMap: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeIPAddr), DataType: nftables.TypeEtherAddr,
	}
}

// unicastRule is: arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation request ether daddr ff:ff:ff:ff:ff:ff
// ether daddr set iif . arp daddr ip map @unicast.
func unicastRule() []expr.Any {
	const (
		value    = unix.NFT_REG_1
		index    = unix.NFT_REG32_00 // the same one: the key of the map is in the first two of its four parts
		addr     = unix.NFT_REG32_01
		targetIP = 24 // in ARP (RFC 826)
	)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: value},
		&expr.Cmp{Op: expr.CmpOpEq, Register: value, Data: []byte{8, 6}}, // ARP
		&expr.Payload{DestRegister: value, Base: expr.PayloadBaseNetworkHeader, Len: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: value, Data: []byte{0, 1, 8, 0, 6, 4, 0, 1}}, // Ethernet, IPv4, their lengths, request
		&expr.Payload{DestRegister: value, Base: expr.PayloadBaseLLHeader, Len: 6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: value, Data: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		&expr.Meta{Key: expr.MetaKeyIIF, Register: index},
		&expr.Payload{DestRegister: addr, Base: expr.PayloadBaseNetworkHeader, Offset: targetIP, Len: 4},
		&expr.Lookup{SourceRegister: index, DestRegister: value, IsDestRegSet: true, SetName: "unicast", SetID: 1},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: value, Base: expr.PayloadBaseLLHeader, Len: 6},
	}
}
