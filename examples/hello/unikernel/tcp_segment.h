/* TCP segments, read and sent. */
#ifndef TCP_SEGMENT_H
#define TCP_SEGMENT_H

#include "tcp.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

/* A received segment, checked and in host order. */
struct segment {
	uint32_t ip;
	uint16_t src_port, dst_port;
	uint32_t seq, ack;
	uint16_t wnd;
	uint16_t mss; /* of a SYN; what RFC 9293 assumes when there is none */
	uint8_t flags;
	const uint8_t *data;
	size_t len; /* of the data */
};

/* segment_read returns false for what is malformed or fails its checksum. */
bool segment_read(const struct ip_header *ip, const uint8_t *data, size_t len, struct segment *segment);

/* segment_mss is the largest segment that fits our interface. */
uint16_t segment_mss(void);

/* segment_reset refuses a segment that belongs to no connection. */
void segment_reset(const struct segment *s);

/* segment_syn_ack answers a SYN. */
void segment_syn_ack(const struct segment *s, uint16_t port, uint32_t seq);

/* segment_send sends n bytes of the connection's send buffer from offset on, acknowledging what was received. */
void segment_send(struct conn *c, uint16_t port, uint32_t seq, size_t offset, size_t n, uint8_t flags);

#endif
