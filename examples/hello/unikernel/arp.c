/*
 * Who has which address (RFC 826). Entries are asked for again after a while
 * and whenever a neighbour speaks with another MAC address than the one we
 * know, since a bridge or a gateway may change its own. All of it happens when
 * a packet is sent or received: no timer wakes an idle unikernel for it.
 */
#include "net.h"
#include "timer.h"

enum { REQUEST = 1, REPLY = 2 };
enum { SETS = 64, WAYS = 4, PENDING = 64 };

#define ASK_EVERY (100 * MILLISECOND)
#define FRESH_FOR (30 * SECOND)

struct neighbour {
	uint32_t ip; /* 0: free */
	uint8_t mac[6];
	bool known;
	uint64_t confirmed; /* when the MAC address was heard of */
	uint64_t asked;     /* when we last asked; 0: never */
	unsigned tries;     /* questions since it was last heard of */
	uint64_t used;
	bool doubtful; /* a packet came from elsewhere since */
	uint64_t doubted;
};

/* A frame that waits for its neighbour's MAC address. */
struct pending {
	uint32_t neighbour; /* 0: free */
	size_t len;
	uint8_t frame[FRAME_MAX];
};

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* The gateway has a place of its own, so that no flood of strangers pushes it out. */
static struct neighbour gateway;
static struct neighbour table[SETS][WAYS];
static struct pending pending[PENDING];
static unsigned next_pending;

static void send_arp(uint16_t operation, const uint8_t dst[6], const uint8_t target_mac[6], uint32_t target_ip)
{
	struct {
		struct eth_header eth;
		struct arp_packet arp;
		uint8_t pad[18]; /* to Ethernet's least length */
	} __attribute__((packed)) frame = {
		.eth = {.type = swap16(ETH_ARP)},
		.arp = {
			.hardware = swap16(1),
			.protocol = swap16(ETH_IPV4),
			.hardware_len = 6,
			.protocol_len = 4,
			.operation = swap16(operation),
			.sender_ip = swap32(net.ip),
			.target_ip = swap32(target_ip),
		},
	};

	memcpy(frame.eth.dst, dst, 6);
	memcpy(frame.eth.src, net.mac, 6);
	memcpy(frame.arp.sender_mac, net.mac, 6);
	memcpy(frame.arp.target_mac, target_mac, 6);
	plat_net_write(&frame, sizeof frame);
}

static struct neighbour *find(uint32_t ip)
{
	struct neighbour *set = table[ip % SETS];

	if (ip == net.gateway)
		return &gateway;
	for (int i = 0; i < WAYS; i++)
		if (set[i].ip == ip)
			return &set[i];
	return NULL;
}

/* find_or_make takes the place of an address that never answered before that of a neighbour. */
static struct neighbour *find_or_make(uint32_t ip)
{
	struct neighbour *set = table[ip % SETS], *n = find(ip);

	if (n != NULL)
		return n;
	n = &set[0];
	for (int i = 1; i < WAYS; i++)
		if (set[i].known < n->known || (set[i].known == n->known && set[i].used < n->used))
			n = &set[i];
	*n = (struct neighbour){.ip = ip};
	return n;
}

/* ask sends a request: the first to the MAC address we know, to spare all others, the next to all. */
static void ask(struct neighbour *n, uint32_t ip)
{
	static const uint8_t unknown[6];

	if (n->asked != 0 && now - n->asked < ASK_EVERY)
		return;
	n->asked = now;
	send_arp(REQUEST, n->known && n->tries == 0 ? n->mac : broadcast, unknown, ip);
	n->tries++;
}

static void transmit(uint8_t *frame, size_t len, const uint8_t mac[6])
{
	struct eth_header *eth = (void *)frame;

	memcpy(eth->dst, mac, 6);
	memcpy(eth->src, net.mac, 6);
	eth->type = swap16(ETH_IPV4);
	plat_net_write(frame, len);
}

void arp_send(uint32_t ip, uint8_t *frame, size_t len)
{
	struct neighbour *n = find_or_make(ip);

	n->used = now;
	if (!n->known || n->doubtful || now - n->confirmed > FRESH_FOR)
		ask(n, ip);
	if (n->known) {
		transmit(frame, len, n->mac);
		return;
	}
	/* The oldest frame gives way: its sender will try again, or has given up. */
	struct pending *p = &pending[next_pending++ % PENDING];
	p->neighbour = ip;
	p->len = len;
	memcpy(p->frame, frame, len);
}

static void learn(struct neighbour *n, uint32_t ip, const uint8_t mac[6])
{
	bool was_known = n->known;

	memcpy(n->mac, mac, 6);
	n->known = true;
	n->confirmed = now;
	n->tries = 0;
	n->doubtful = false;
	if (was_known)
		return;
	/* From the oldest on, as they were sent. */
	for (unsigned i = 0; i < PENDING; i++) {
		struct pending *p = &pending[(next_pending + i) % PENDING];
		if (p->neighbour != ip)
			continue;
		p->neighbour = 0;
		transmit(p->frame, p->len, mac);
	}
}

void arp_input(const struct arp_packet *packet, size_t len)
{
	if (len < sizeof *packet || packet->hardware != swap16(1) || packet->protocol != swap16(ETH_IPV4) ||
	    packet->hardware_len != 6 || packet->protocol_len != 4)
		return;
	uint32_t sender = swap32(packet->sender_ip), target = swap32(packet->target_ip);
	if (sender == net.ip || (packet->sender_mac[0] & 1))
		return;
	if (sender != 0) { /* 0: somebody probes whether an address is free */
		/* Whoever asks for us will be spoken to; of others we only follow those we know. */
		struct neighbour *n = target == net.ip ? find_or_make(sender) : find(sender);
		if (n != NULL)
			learn(n, sender, packet->sender_mac);
	}
	if (packet->operation == swap16(REQUEST) && target == net.ip)
		send_arp(REPLY, packet->sender_mac, packet->sender_mac, sender);
}

void arp_seen(uint32_t ip, const uint8_t mac[6])
{
	struct neighbour *n = find(ip);

	if (n == NULL || !n->known || memcmp(n->mac, mac, 6) == 0)
		return;
	/* Where a packet came from proves little, so the next one we send asks, and at once all. */
	n->doubtful = true;
	if (n->tries == 0)
		n->tries = 1;
	/* Without waiting, but not every time, as two MAC addresses may both be right. */
	if (n->doubted == 0 || now - n->doubted > SECOND) {
		n->doubted = now;
		n->asked = 0;
	}
}

static void announce(void)
{
	static const uint8_t unknown[6];

	send_arp(REQUEST, broadcast, unknown, net.ip);
}

void arp_start(void)
{
	gateway.ip = net.gateway;
	announce();
	if (net.gateway != 0)
		ask(&gateway, net.gateway);
	/* A port that has just joined a bridge may not forward yet (RFC 5227 says twice, too). */
	timer_set(TIMER_ANNOUNCE, now + SECOND);
}

void arp_timer(void)
{
	announce();
	if (net.gateway != 0 && !gateway.known)
		ask(&gateway, net.gateway);
}
