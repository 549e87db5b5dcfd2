/* Ping, and the answer to UDP that nobody wants (RFC 792). */
#include "net.h"

enum { ECHO_REPLY = 0, UNREACHABLE = 3, ECHO_REQUEST = 8, PORT_UNREACHABLE = 3 };

static size_t room(void)
{
	return net.mtu - sizeof(struct ip_header);
}

void icmp_input(const struct ip_header *ip, const uint8_t *data, size_t len)
{
	struct icmp_header *answer = ip_payload();

	if (len < sizeof *answer || len > room() || data[0] != ECHO_REQUEST || checksum_fold(checksum_add(0, data, len)) != 0)
		return;
	memcpy(answer, data, len);
	answer->type = ECHO_REPLY;
	answer->checksum = 0;
	answer->checksum = checksum_fold(checksum_add(0, answer, len));
	ip_send(swap32(ip->src), IP_ICMP, len);
}

void icmp_port_unreachable(const struct ip_header *ip, const uint8_t *data, size_t len)
{
	struct {
		struct icmp_header icmp;
		struct ip_header ip;
		uint8_t data[8]; /* enough to hold the ports */
	} __attribute__((packed)) *answer = ip_payload();

	if (len < sizeof answer->data)
		return;
	answer->icmp = (struct icmp_header){.type = UNREACHABLE, .code = PORT_UNREACHABLE};
	answer->ip = *ip;
	answer->ip.version_ihl = 0x45; /* its options, if any, are left out */
	memcpy(answer->data, data, sizeof answer->data);
	answer->icmp.checksum = checksum_fold(checksum_add(0, answer, sizeof *answer));
	ip_send(swap32(ip->src), IP_ICMP, sizeof *answer);
}
