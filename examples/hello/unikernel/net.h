/*
 * The network below TCP: Ethernet, ARP, IPv4, ICMP and UDP, for one interface
 * with one address. Everything runs in one thread, from frame to answer, so
 * one frame buffer each way is enough.
 */
#ifndef NET_H
#define NET_H

#include "lib.h"
#include "platform.h"

struct eth_header {
	uint8_t dst[6], src[6];
	uint16_t type;
} __attribute__((packed));

struct arp_packet {
	uint16_t hardware, protocol;
	uint8_t hardware_len, protocol_len;
	uint16_t operation;
	uint8_t sender_mac[6];
	uint32_t sender_ip;
	uint8_t target_mac[6];
	uint32_t target_ip;
} __attribute__((packed));

struct ip_header {
	uint8_t version_ihl, tos;
	uint16_t len, id, fragment;
	uint8_t ttl, protocol;
	uint16_t checksum;
	uint32_t src, dst;
} __attribute__((packed));

struct icmp_header {
	uint8_t type, code;
	uint16_t checksum;
	uint32_t rest;
} __attribute__((packed));

struct udp_header {
	uint16_t src_port, dst_port, len, checksum;
} __attribute__((packed));

enum { ETH_IPV4 = 0x0800, ETH_ARP = 0x0806 };
enum { IP_ICMP = 1, IP_TCP = 6, IP_UDP = 17 };
enum { MTU_MAX = 1500, FRAME_MAX = sizeof(struct eth_header) + MTU_MAX };

/* Addresses and ports are in host order everywhere but in a header. */
static inline uint16_t swap16(uint16_t x)
{
	return __builtin_bswap16(x);
}

static inline uint32_t swap32(uint32_t x)
{
	return __builtin_bswap32(x);
}

/* Who we are. */
struct interface {
	uint8_t mac[6];
	uint16_t mtu;
	uint32_t ip, mask, gateway;
	uint16_t udp_port; /* that is echoed */
};

extern struct interface net;

/* The time of the current turn of the main loop, in nanoseconds. */
extern uint64_t now;

/* eth_input takes one received frame; it may write to it. */
void eth_input(uint8_t *frame, size_t len);

/* arp_start announces our address and looks for the gateway; arp_timer announces once more. */
void arp_start(void);
void arp_timer(void);

void arp_input(const struct arp_packet *packet, size_t len);

/* arp_seen compares where a packet came from with what we believe; when they differ, the next arp_send asks. */
void arp_seen(uint32_t ip, const uint8_t mac[6]);

/*
 * arp_send sends a whole IPv4 frame, all but its Ethernet header filled in, to
 * a neighbour. While the neighbour's MAC address is not known, it keeps a copy
 * of the frame and asks.
 */
void arp_send(uint32_t neighbour, uint8_t *frame, size_t len);

/* ip_input takes the IPv4 packet in a frame, after its Ethernet header. */
void ip_input(uint8_t *packet, size_t len, const uint8_t src_mac[6]);

/* ip_payload is where the next outgoing packet's payload is to be written, up to the MTU. */
void *ip_payload(void);

/* ip_send sends the len bytes at ip_payload. */
void ip_send(uint32_t dst, uint8_t protocol, size_t len);

void icmp_input(const struct ip_header *ip, const uint8_t *data, size_t len);

/* icmp_port_unreachable answers a packet that nobody here wants. */
void icmp_port_unreachable(const struct ip_header *ip, const uint8_t *data, size_t len);

void udp_input(const struct ip_header *ip, const uint8_t *data, size_t len);

/* checksum_add sums data up; checksum_fold makes the sum an Internet checksum (RFC 1071), in network order. */
uint64_t checksum_add(uint64_t sum, const void *data, size_t len);
uint64_t checksum_pseudo(uint32_t src, uint32_t dst, uint8_t protocol, size_t len);
uint16_t checksum_fold(uint64_t sum);

#endif
