/* UDP echo (RFC 768, RFC 862) on the one port that is served. */
#include "net.h"

void udp_input(const struct ip_header *ip, const uint8_t *data, size_t len)
{
	const struct udp_header *udp = (const void *)data;
	struct udp_header *answer = ip_payload();
	uint32_t src = swap32(ip->src);

	if (len < sizeof *udp || swap16(udp->len) < sizeof *udp || swap16(udp->len) > len)
		return;
	len = swap16(udp->len);
	if (len > net.mtu - sizeof *ip)
		return;
	/* A checksum of 0 says that the sender made none. */
	if (udp->checksum != 0 && checksum_fold(checksum_add(checksum_pseudo(src, net.ip, IP_UDP, len), udp, len)) != 0)
		return;
	if (swap16(udp->dst_port) != net.udp_port) {
		icmp_port_unreachable(ip, data, len);
		return;
	}
	memcpy(answer, udp, len);
	answer->src_port = udp->dst_port;
	answer->dst_port = udp->src_port;
	answer->checksum = 0;
	answer->checksum = checksum_fold(checksum_add(checksum_pseudo(net.ip, src, IP_UDP, len), answer, len));
	if (answer->checksum == 0)
		answer->checksum = 0xffff;
	ip_send(src, IP_UDP, len);
}
