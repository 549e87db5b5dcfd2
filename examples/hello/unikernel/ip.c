/* IPv4 (RFC 791), without fragments and without options of our own. */
#include "net.h"
#include "tcp.h"

enum { MORE_FRAGMENTS_AND_OFFSET = 0x3fff, DONT_FRAGMENT = 0x4000 };

static uint8_t out[FRAME_MAX];

void *ip_payload(void)
{
	return out + sizeof(struct eth_header) + sizeof(struct ip_header);
}

/* next_hop is the neighbour through which an address is reached; 0 is nobody. */
static uint32_t next_hop(uint32_t dst)
{
	return (dst & net.mask) == (net.ip & net.mask) ? dst : net.gateway;
}

void ip_send(uint32_t dst, uint8_t protocol, size_t len)
{
	struct ip_header *ip = (void *)(out + sizeof(struct eth_header));
	uint32_t hop = next_hop(dst);

	if (hop == 0)
		return;
	*ip = (struct ip_header){
		.version_ihl = 0x45,
		.len = swap16((uint16_t)(sizeof *ip + len)),
		.fragment = swap16(DONT_FRAGMENT),
		.ttl = 64,
		.protocol = protocol,
		.src = swap32(net.ip),
		.dst = swap32(dst),
	};
	ip->checksum = checksum_fold(checksum_add(0, ip, sizeof *ip));
	arp_send(hop, out, sizeof(struct eth_header) + sizeof *ip + len);
}

/* answerable says whether a source can be one single host, so that an answer harms nobody else. */
static bool answerable(uint32_t src)
{
	uint32_t first = src >> 24;

	if (first == 0 || first == 127 || first >= 224 || src == net.ip)
		return false;
	return ~net.mask <= 1 || src != (net.ip | ~net.mask);
}

void ip_input(uint8_t *packet, size_t len, const uint8_t src_mac[6])
{
	const struct ip_header *ip = (const void *)packet;

	if (len < sizeof *ip)
		return;
	size_t header = (size_t)(ip->version_ihl & 15) * 4, total = swap16(ip->len);
	if (ip->version_ihl >> 4 != 4 || header < sizeof *ip || total < header || total > len)
		return;
	if (swap32(ip->dst) != net.ip || !answerable(swap32(ip->src)))
		return;
	if (checksum_fold(checksum_add(0, packet, header)) != 0)
		return;
	if (swap16(ip->fragment) & MORE_FRAGMENTS_AND_OFFSET)
		return;
	arp_seen(next_hop(swap32(ip->src)), src_mac);

	switch (ip->protocol) {
	case IP_ICMP:
		icmp_input(ip, packet + header, total - header);
		break;
	case IP_UDP:
		udp_input(ip, packet + header, total - header);
		break;
	case IP_TCP:
		tcp_input(ip, packet + header, total - header);
		break;
	}
}
