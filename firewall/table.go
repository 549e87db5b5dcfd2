package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where the chains of the table stand: before those of iptables.
const (
	priorityInvalid  = -151
	priorityRedirect = -110
	priorityGuard    = -1
)

const (
	atOnce     = 500     // elements in one message, whose lists have a length of 16 bits
	sendBuffer = 8 << 20 // bytes, which a commit to an empty table must fit into
)

// ownTable is the connection to nftables, and what this process made there. The lock of the Kernel guards it.
type ownTable struct {
	conn   *nftables.Conn
	socket *netlink.Conn
	made   string // what stands in it: nobody else can have made that
	own    *nftables.Table
	sets   map[string]*nftables.Set
	layout []ruled
}

func newOwnTable() *ownTable {
	own := &nftables.Table{Name: tableOwn, Family: nftables.TableFamilyIPv4}
	all := sets(own)
	return &ownTable{own: own, sets: all, layout: layout(own, all)}
}

// open connects to nftables, unless it is connected. The connection stays: the kernel makes who ends one wait until what was removed is out of use.
func (t *ownTable) open() error {
	if t.conn != nil {
		return nil
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		t.socket = c
		return c.SetWriteBuffer(sendBuffer)
	}))
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	t.conn = conn
	return nil
}

// close ends the connection, after which the next use makes another.
func (t *ownTable) close() {
	if t.conn != nil {
		_ = t.conn.CloseLasting()
		t.conn = nil
	}
}

// do runs f on the connection until ctx ends, and drops the connection if f fails: nobody knows what else it would have said.
func (t *ownTable) do(ctx context.Context, f func() error) error {
	if err := t.open(); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	socket := t.socket
	err := socket.SetDeadline(deadline)
	if err == nil {
		kept := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
		err = f()
		if !kept() { // and the next use would meet the deadline that is being set
			err = ctx.Err()
		}
	}
	if err != nil {
		t.close()
	}
	return err
}

// read reads what the kernel has of the table.
func (t *ownTable) read(ctx context.Context) (have table, err error) {
	err = t.do(ctx, func() error {
		have = table{items: items{}}
		awake := false
		if have.there, awake, err = t.there(); err != nil || !have.there {
			return err
		}
		made, err := t.standing()
		if err != nil {
			return err
		}
		have.sound = awake && made != "" && made == t.made
		found, err := t.conn.GetSets(t.own) // those that are there: a table of that name may be somebody else's
		if err != nil {
			return err
		}
		for _, s := range found {
			if err := t.list(s.Name, have.items); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return table{}, fmt.Errorf("read table %s: %w", tableOwn, err)
	}
	return have, nil
}

// list reads a set into items, if it is one of ours.
func (t *ownTable) list(name string, found items) error {
	s, ours := t.sets[name]
	if !ours {
		return nil
	}
	elements, err := t.conn.GetSetElements(s)
	for _, e := range elements {
		if key, m, ok := parseElement(name, e); ok {
			found[key] = m
		}
	}
	return err
}

// there reports whether the kernel has the table, and whether its chains are at work: a table may be dormant.
func (t *ownTable) there() (there, awake bool, err error) {
	tables, err := t.conn.ListTablesOfFamily(t.own.Family)
	for _, other := range tables {
		if other.Name == t.own.Name {
			return true, other.Flags == 0, nil
		}
	}
	return false, false, err
}

// standing names what stands in the table: its rules, in their order, as the kernel numbers them, never twice the same,
// and what becomes of packets that no rule decides.
func (t *ownTable) standing() (string, error) {
	chains, err := t.conn.ListChainsOfTableFamily(t.own.Family)
	if err != nil {
		return "", err
	}
	var all []string
	for _, c := range chains {
		if c.Table.Name != t.own.Name {
			continue
		}
		rules, err := t.conn.GetRules(t.own, c)
		if err != nil {
			return "", err
		}
		all = append(all, c.Name)
		if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			all = append(all, "drops")
		}
		for _, r := range rules {
			all = append(all, strconv.FormatUint(r.Handle, 10))
		}
	}
	return strings.Join(all, " "), nil
}

// commit makes one change of the table.
func (t *ownTable) commit(ctx context.Context, c change) error {
	if c.empty() {
		return nil
	}
	err := t.do(ctx, func() error {
		if c.anew || c.drop {
			t.conn.AddTable(t.own) // so that there is one to delete
			t.conn.DelTable(t.own)
		}
		if c.anew {
			if err := t.build(); err != nil {
				return err
			}
		}
		if err := t.elements(c); err != nil {
			return err
		}
		if err := t.conn.Flush(); err != nil || !c.anew {
			return err
		}
		var err error
		t.made, err = t.standing()
		return err
	})
	if err != nil {
		return fmt.Errorf("change table %s: %w", tableOwn, err)
	}
	return nil
}

// build adds the table with its sets and rules.
func (t *ownTable) build() error {
	t.conn.AddTable(t.own)
	for _, s := range t.sets {
		if err := t.conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	for _, c := range t.layout {
		t.conn.AddChain(c.chain)
		t.conn.AddRule(&nftables.Rule{Table: t.own, Chain: c.chain, Exprs: c.rule})
	}
	return nil
}

// elements removes and adds elements.
func (t *ownTable) elements(c change) error {
	remove, add := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	for _, key := range c.remove {
		remove[key.set] = append(remove[key.set], nftables.SetElement{Key: key.bytes()})
	}
	for key, m := range c.add {
		e := nftables.SetElement{Key: key.bytes(), Comment: m.owner}
		if key.set == setRedirects {
			e.Val = m.bytes()
		}
		add[key.set] = append(add[key.set], e)
	}
	for name, list := range remove {
		for some := range slices.Chunk(list, atOnce) {
			if err := t.conn.SetDeleteElements(t.sets[name], some); err != nil {
				return err
			}
		}
	}
	for name, list := range add {
		for some := range slices.Chunk(list, atOnce) {
			if err := t.conn.SetAddElements(t.sets[name], some); err != nil {
				return err
			}
		}
	}
	return nil
}

// sets are those of the table.
func sets(own *nftables.Table) map[string]*nftables.Set {
	all := map[string]*nftables.Set{}
	for i, s := range []*nftables.Set{
		{
			Name: setRedirects, IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
			DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
		},
		{
			Name: setGuards, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
		},
		{Name: setPorts, KeyType: nftables.TypeInetService},
		{Name: setBridges, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, // for people: without it nft shows no name
	} {
		s.Table, s.ID = own, uint32(i+1) // within one commit
		all[s.Name] = s
	}
	return all
}

// ruled is a chain with its rule.
type ruled struct {
	chain *nftables.Chain
	rule  []expr.Any
}

// layout are the chains of the table: they do with its sets what the chains of iptables do with rules.
func layout(own *nftables.Table, sets map[string]*nftables.Set) []ruled {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: own, Type: kind, Hooknum: hook, Priority: &priority}
	}
	in := func(set string, register uint32) expr.Any {
		return &expr.Lookup{SourceRegister: register, DestRegister: reg1, IsDestRegSet: sets[set].IsMap, SetName: set, SetID: sets[set].ID}
	}
	redirect := slices.Concat(local(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg32 + 1}, // destination port
		in(setRedirects, reg1),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1, RegProtoMin: reg32 + 1, Specified: true},
	})
	return []ruled{
		{chain("invalid", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityInvalid), slices.Concat(
			state(expr.CtStateBitINVALID),
			equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, []byte{unix.IPPROTO_TCP}),
			[]expr.Any{
				&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg1},
				in(setPorts, reg1),
			},
			local(), drop(),
		)},
		{chain("guard", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityGuard), slices.Concat(
			[]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, in(setBridges, reg1)},
			state(expr.CtStateBitNEW),
			[]expr.Any{
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4, DestRegister: reg1}, // source address
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + 1},
				&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2, DestRegister: reg32 + 2}, // source port
				in(setGuards, reg1),
			},
			drop(),
		)},
		{chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityRedirect), redirect},
		{chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityRedirect), redirect},
	}
}

// Registers: the first one, of 16 bytes, and the first of 4 bytes, which begins at the same place.
const (
	reg1  = unix.NFT_REG_1
	reg32 = unix.NFT_REG32_00
)

func equal(load expr.Any, value []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: value}}
}

// local matches what is for an address of the host.
func local() []expr.Any {
	return equal(&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
}

// state matches a state of connection tracking.
func state(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// protocols are those that a port can have.
var protocols = [...]struct {
	name   string
	number byte
}{{"tcp", unix.IPPROTO_TCP}, {"udp", unix.IPPROTO_UDP}}

// bytes is a key as the kernel has it: each part fills up a register of 4 bytes if there are several.
func (k item) bytes() []byte {
	port := binary.BigEndian.AppendUint16(nil, k.port)
	var protocol []byte
	for _, p := range protocols {
		if p.name == k.protocol {
			protocol = []byte{p.number, 0, 0, 0}
		}
	}
	switch k.set {
	case setRedirects:
		return slices.Concat(protocol, port, []byte{0, 0})
	case setGuards:
		return slices.Concat(k.address.AsSlice(), protocol, port, []byte{0, 0})
	case setBridges:
		return slices.Concat([]byte(k.bridge), make([]byte, unix.IFNAMSIZ-len(k.bridge)))
	}
	return port
}

func (m meaning) bytes() []byte {
	return slices.Concat(m.address.AsSlice(), binary.BigEndian.AppendUint16(nil, m.target), []byte{0, 0})
}

// parseElement reads an element that the kernel has. One that we could not have made is none.
func parseElement(set string, e nftables.SetElement) (key item, m meaning, ok bool) {
	key, m.owner = item{set: set}, e.Comment
	rest := e.Key
	next := func(n int) []byte {
		if len(rest) < n {
			rest = nil
			return make([]byte, n)
		}
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	protocol := func() string {
		number := next(4)[0]
		for _, p := range protocols {
			if p.number == number {
				return p.name
			}
		}
		return ""
	}
	switch set {
	case setRedirects:
		key.protocol, key.port = protocol(), binary.BigEndian.Uint16(next(4))
		if len(e.Val) != 8 {
			return key, m, false
		}
		m.address, m.target = netip.AddrFrom4([4]byte(e.Val[:4])), binary.BigEndian.Uint16(e.Val[4:])
	case setGuards:
		key.address = netip.AddrFrom4([4]byte(next(4)))
		key.protocol, key.port = protocol(), binary.BigEndian.Uint16(next(4))
	case setPorts:
		key.port = binary.BigEndian.Uint16(next(2))
	case setBridges:
		key.bridge = strings.TrimRight(string(next(unix.IFNAMSIZ)), "\x00")
	}
	return key, m, slices.Equal(key.bytes(), e.Key)
}
