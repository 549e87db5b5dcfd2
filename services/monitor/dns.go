package monitor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

const maxDNS = 4096 // bytes of an answer that are read; its header is what counts

// dnsProbe asks a question over UDP.
type dnsProbe struct {
	to       netip.AddrPort
	question dnsmessage.Question
}

func newDNSProbe(spec *fulmarv1.DnsProbe, addr netip.Addr) (dnsProbe, error) {
	types := map[string]dnsmessage.Type{
		"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "NS": dnsmessage.TypeNS,
		"SOA": dnsmessage.TypeSOA, "MX": dnsmessage.TypeMX, "TXT": dnsmessage.TypeTXT,
	}
	name, err := dnsmessage.NewName(strings.TrimSuffix(spec.GetName(), ".") + ".")
	if err != nil {
		return dnsProbe{}, fmt.Errorf("dns: name %q: %w", spec.GetName(), err)
	}
	p := dnsProbe{
		to:       netip.AddrPortFrom(addr, uint16(spec.GetPort())),
		question: dnsmessage.Question{Name: name, Type: types[spec.GetType()], Class: dnsmessage.ClassINET},
	}
	if _, err := p.query(0); err != nil {
		return dnsProbe{}, fmt.Errorf("dns: name %q: %w", spec.GetName(), err)
	}
	return p, nil
}

func (p dnsProbe) query(id uint16) ([]byte, error) {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{p.question},
	}
	return m.Pack()
}

func (p dnsProbe) ask(ctx context.Context, patience, _ time.Duration) error {
	id := uint16(rand.Uint32())
	query, err := p.query(id)
	if err != nil {
		return err
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(p.to))
	if err != nil {
		return plain(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return plain(err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // a closed one needs none
	if _, err := conn.Write(query); err != nil {
		return plain(err)
	}
	return plain(p.answer(conn, id))
}

func (dnsProbe) close() {}

// answer waits for the answer to the question id; what is none is passed over.
func (p dnsProbe) answer(conn *net.UDPConn, id uint16) error {
	buf := make([]byte, maxDNS)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		var parser dnsmessage.Parser
		h, err := parser.Start(buf[:n])
		if err != nil || h.ID != id || !h.Response {
			continue
		}
		if h.RCode != dnsmessage.RCodeSuccess {
			return errors.New(rcode(h.RCode))
		}
		return nil
	}
}

// rcode is how people call an error of DNS (RFC 1035 §4.1.1).
func rcode(r dnsmessage.RCode) string {
	switch r {
	case dnsmessage.RCodeFormatError:
		return "FORMERR"
	case dnsmessage.RCodeServerFailure:
		return "SERVFAIL"
	case dnsmessage.RCodeNameError:
		return "NXDOMAIN"
	case dnsmessage.RCodeNotImplemented:
		return "NOTIMP"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	}
	return fmt.Sprintf("error %d", uint16(r))
}
