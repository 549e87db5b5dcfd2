/*
 * TCP (RFC 9293) for a server with short answers: one listening port, a fixed
 * table of connections, a receive and a send buffer each.
 */
#ifndef TCP_H
#define TCP_H

#include "net.h"

enum {
	CONNECTIONS = 1024,
	RECEIVE_SIZE = 4096, /* also the longest request head that is taken */
	SEND_SIZE = 2048,
};

/* What http.c keeps of a connection. */
struct http {
	uint64_t body_left; /* of the last request, to be skipped */
	bool sleeping;      /* the request at the front of the receive buffer is answered later */
};

/*
 * A connection that is established. (Half-open ones take no memory, see
 * cookie.h.) RFC 9293's states are told apart by who has closed:
 * peer_fin alone is CLOSE-WAIT; closing is FIN-WAIT-1, CLOSING or LAST-ACK;
 * fin_acked alone is FIN-WAIT-2; both together TIME-WAIT, or the end.
 */
struct conn {
	uint32_t ip; /* 0: free */
	uint16_t port;
	uint16_t next; /* in the hash chain or the free list, see conn.c */

	bool peer_fin;      /* the peer's FIN is received */
	bool closing;       /* our FIN follows what is in the send buffer */
	bool fin_acked;     /* and is acknowledged */
	bool linger;        /* we closed first, so we are the one to wait */
	bool time_wait;
	bool ack_due;       /* the peer is to hear from us after this segment */
	bool retransmitting; /* the timer runs for an acknowledgement or a window */
	uint8_t backoff;

	uint16_t mss;
	uint16_t rx_len, tx_len;

	uint32_t rcv_nxt, rcv_edge; /* the edge is the end of the window as last told */
	uint32_t snd_una, snd_nxt, snd_max, snd_wnd;

	uint32_t srtt, rttvar; /* in microseconds, srtt 0: never measured */
	uint32_t rtt_seq;      /* the measured segment ends here */
	uint64_t rtt_start;    /* 0: none is measured */
	uint64_t progress;     /* the last acknowledgement of something new */

	struct http http;
};

/* tcp_start begins to listen. */
void tcp_start(uint16_t port);

void tcp_input(const struct ip_header *ip, const uint8_t *data, size_t len);
void tcp_timer(unsigned id);

/* tcp_received is what has arrived and is not consumed yet. */
struct slice tcp_received(const struct conn *c);
void tcp_consume(struct conn *c, size_t n);

/* tcp_room is how much tcp_write takes. */
size_t tcp_room(const struct conn *c);
void tcp_write(struct conn *c, struct slice data);

/* tcp_close sends a FIN after all that was written; what the peer still sends is thrown away. */
void tcp_close(struct conn *c);

/* tcp_flush sends what was written outside of tcp_input. */
void tcp_flush(struct conn *c);

#endif
