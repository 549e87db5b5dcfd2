#include "net.h"

struct interface net;

void eth_input(uint8_t *frame, size_t len)
{
	static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	const struct eth_header *eth = (const void *)frame;

	if (len < sizeof *eth)
		return;
	/* A bridge floods what it has not learnt yet, so others' frames come by. */
	if (memcmp(eth->dst, net.mac, 6) != 0 && memcmp(eth->dst, broadcast, 6) != 0)
		return;
	if (eth->type == swap16(ETH_IPV4))
		ip_input(frame + sizeof *eth, len - sizeof *eth, eth->src);
	else if (eth->type == swap16(ETH_ARP))
		arp_input((const void *)(frame + sizeof *eth), len - sizeof *eth);
}
