#include "tcp_segment.h"
#include "conn.h"

struct tcp_header {
	uint16_t src_port, dst_port;
	uint32_t seq, ack;
	uint8_t offset, flags; /* the offset in its upper half, in words */
	uint16_t wnd, checksum, urgent;
} __attribute__((packed));

enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_MSS = 2, DEFAULT_MSS = 536, LEAST_MSS = 128 };

static uint16_t read_mss(const uint8_t *options, size_t len)
{
	while (len > 0 && options[0] != OPTION_END) {
		if (options[0] == OPTION_NOP) {
			options++;
			len--;
			continue;
		}
		if (len < 2 || options[1] < 2 || options[1] > len)
			break;
		if (options[0] == OPTION_MSS && options[1] == 4) {
			uint16_t mss = (uint16_t)(options[2] << 8 | options[3]);
			return mss < LEAST_MSS ? LEAST_MSS : mss;
		}
		len -= options[1];
		options += options[1];
	}
	return DEFAULT_MSS;
}

bool segment_read(const struct ip_header *ip, const uint8_t *data, size_t len, struct segment *s)
{
	const struct tcp_header *tcp = (const void *)data;
	uint32_t src = swap32(ip->src);

	if (len < sizeof *tcp)
		return false;
	size_t header = (size_t)(tcp->offset >> 4) * 4;
	if (header < sizeof *tcp || header > len)
		return false;
	if (checksum_fold(checksum_add(checksum_pseudo(src, net.ip, IP_TCP, len), data, len)) != 0)
		return false;
	*s = (struct segment){
		.ip = src,
		.src_port = swap16(tcp->src_port),
		.dst_port = swap16(tcp->dst_port),
		.seq = swap32(tcp->seq),
		.ack = swap32(tcp->ack),
		.wnd = swap16(tcp->wnd),
		.flags = tcp->flags & (FIN | SYN | RST | ACK),
		.data = data + header,
		.len = len - header,
	};
	if (s->flags & SYN)
		s->mss = read_mss(data + sizeof *tcp, header - sizeof *tcp);
	return true;
}

uint16_t segment_mss(void)
{
	return net.mtu - sizeof(struct ip_header) - sizeof(struct tcp_header);
}

/* finish fills in what every segment has, and sends it; tcp is where ip_payload said. */
static void finish(struct tcp_header *tcp, uint32_t ip, size_t header, size_t len)
{
	tcp->offset = (uint8_t)(header / 4 << 4);
	tcp->checksum = 0;
	tcp->checksum = checksum_fold(checksum_add(checksum_pseudo(net.ip, ip, IP_TCP, header + len), tcp, header + len));
	ip_send(ip, IP_TCP, header + len);
}

void segment_reset(const struct segment *s)
{
	struct tcp_header *tcp = ip_payload();

	if (s->flags & RST)
		return;
	*tcp = (struct tcp_header){.src_port = swap16(s->dst_port), .dst_port = swap16(s->src_port), .flags = RST};
	if (s->flags & ACK) {
		tcp->seq = swap32(s->ack);
	} else {
		uint32_t len = (uint32_t)s->len + !!(s->flags & SYN) + !!(s->flags & FIN);
		tcp->ack = swap32(s->seq + len);
		tcp->flags |= ACK;
	}
	finish(tcp, s->ip, sizeof *tcp, 0);
}

void segment_syn_ack(const struct segment *s, uint16_t port, uint32_t seq)
{
	struct {
		struct tcp_header header;
		uint8_t kind, len;
		uint16_t mss;
	} __attribute__((packed)) *tcp = ip_payload();

	tcp->header = (struct tcp_header){
		.src_port = swap16(port),
		.dst_port = swap16(s->src_port),
		.seq = swap32(seq),
		.ack = swap32(s->seq + 1),
		.flags = SYN | ACK,
		.wnd = swap16(RECEIVE_SIZE),
	};
	tcp->kind = OPTION_MSS;
	tcp->len = 4;
	tcp->mss = swap16(segment_mss());
	finish(&tcp->header, s->ip, sizeof *tcp, 0);
}

void segment_send(struct conn *c, uint16_t port, uint32_t seq, size_t offset, size_t n, uint8_t flags)
{
	struct tcp_header *tcp = ip_payload();
	/* A closed connection takes everything, to throw it away. */
	uint16_t wnd = c->closing ? RECEIVE_SIZE : RECEIVE_SIZE - c->rx_len;

	*tcp = (struct tcp_header){
		.src_port = swap16(port),
		.dst_port = swap16(c->port),
		.seq = swap32(seq),
		.ack = swap32(c->rcv_nxt),
		.flags = flags | ACK,
		.wnd = swap16(wnd),
	};
	if (n > 0)
		memcpy((uint8_t *)tcp + sizeof *tcp, conn_tx(c) + offset, n);
	c->rcv_edge = c->rcv_nxt + wnd;
	c->ack_due = false;
	finish(tcp, c->ip, sizeof *tcp, n);
}
