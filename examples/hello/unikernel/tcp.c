#include "tcp.h"
#include "conn.h"
#include "cookie.h"
#include "http.h"
#include "tcp_segment.h"
#include "timer.h"

#define RTO_FIRST SECOND
#define RTO_LEAST (200 * MILLISECOND)
#define RTO_MOST (10 * SECOND)
#define GIVE_UP (60 * SECOND)   /* nothing new acknowledged for so long */
#define IDLE (120 * SECOND)     /* a connection without a request */
#define FIN_WAIT (10 * SECOND)  /* for the peer's FIN after ours */
#define TIME_WAIT (1 * SECOND)

static uint16_t listen_port;

/* before compares sequence numbers, which wrap around. */
static bool before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

void tcp_start(uint16_t port)
{
	listen_port = port;
	cookie_start();
	conn_start();
}

struct slice tcp_received(const struct conn *c)
{
	return (struct slice){(const char *)conn_rx(c), c->rx_len};
}

void tcp_consume(struct conn *c, size_t n)
{
	c->rx_len -= (uint16_t)n;
	memmove(conn_rx(c), conn_rx(c) + n, c->rx_len);
}

size_t tcp_room(const struct conn *c)
{
	return c->closing ? 0 : SEND_SIZE - c->tx_len;
}

void tcp_write(struct conn *c, struct slice data)
{
	size_t n = min_size(data.len, tcp_room(c));

	memcpy(conn_tx(c) + c->tx_len, data.at, n);
	c->tx_len += (uint16_t)n;
}

void tcp_close(struct conn *c)
{
	if (c->closing)
		return;
	c->closing = true;
	c->linger = !c->peer_fin;
	c->rx_len = 0;
}

static void forget(struct conn *c)
{
	http_closed(c);
	conn_free(c);
}

/* unfinished says whether the peer still has to acknowledge or to take something. */
static bool unfinished(const struct conn *c)
{
	return c->tx_len > 0 || (c->closing && !c->fin_acked);
}

static uint64_t rto(const struct conn *c)
{
	uint64_t t = RTO_FIRST;

	if (c->srtt != 0)
		t = ((uint64_t)c->srtt + 4 * (uint64_t)c->rttvar) * 1000;
	if (t < RTO_LEAST)
		t = RTO_LEAST;
	t <<= c->backoff;
	return t < RTO_MOST ? t : RTO_MOST;
}

/* restart_timer sets the connection's one timer to what it waits for now. */
static void restart_timer(struct conn *c)
{
	uint64_t wait = IDLE;

	c->retransmitting = unfinished(c);
	if (c->retransmitting)
		wait = rto(c);
	else if (c->time_wait)
		wait = TIME_WAIT;
	else if (c->fin_acked)
		wait = FIN_WAIT;
	timer_set(TIMER_TCP + conn_id(c), now + wait);
}

static void send(struct conn *c, size_t n, uint8_t flags)
{
	uint32_t end = c->snd_nxt + (uint32_t)n + !!(flags & FIN);

	/* Only what was never sent before is measured (Karn), one segment at a time. */
	if (c->rtt_start == 0 && c->snd_nxt == c->snd_max && end != c->snd_nxt) {
		c->rtt_start = now;
		c->rtt_seq = end;
	}
	segment_send(c, listen_port, c->snd_nxt, c->snd_nxt - c->snd_una, n, flags);
	c->snd_nxt = end;
	if (before(c->snd_max, end))
		c->snd_max = end;
}

/*
 * output sends what the peer's window takes. There is no congestion window: a
 * send buffer is smaller than the initial window that RFC 6928 allows.
 */
static void output(struct conn *c)
{
	for (;;) {
		size_t sent = c->snd_nxt - c->snd_una;
		size_t unsent = sent < c->tx_len ? c->tx_len - sent : 0;
		size_t room = sent < c->snd_wnd ? c->snd_wnd - sent : 0;
		size_t n = min_size(min_size(unsent, room), c->mss);
		/* Past an unacknowledged FIN, sent is one more than the buffer holds. */
		bool fin = c->closing && !c->fin_acked && sent + n == c->tx_len;

		/* Against silly windows: a piece waits while an acknowledgement is to come. */
		if (n < unsent && n < c->mss && sent > 0)
			break;
		if (n == 0 && !fin)
			break;
		send(c, n, (n == unsent ? PSH : 0) | (fin ? FIN : 0));
	}
}

/* flush sends what there is, and sees that the timer runs for it. */
static void flush(struct conn *c)
{
	bool fresh = unfinished(c) && !c->retransmitting;

	output(c);
	if (fresh) {
		c->progress = now;
		c->backoff = 0;
		restart_timer(c);
	}
}

void tcp_flush(struct conn *c)
{
	flush(c);
	/* A window that had become small is told of when it is wide again. */
	uint32_t edge = c->rcv_nxt + (c->closing ? RECEIVE_SIZE : RECEIVE_SIZE - c->rx_len);
	if (c->ack_due || (!c->peer_fin && edge - c->rcv_edge >= RECEIVE_SIZE / 2))
		send(c, 0, 0);
}

static void measure(struct conn *c)
{
	if (c->rtt_start == 0 || before(c->snd_una, c->rtt_seq))
		return;
	uint32_t sample = (uint32_t)min_size((now - c->rtt_start) / 1000, 10 * 1000 * 1000) + 1;
	if (c->srtt == 0) {
		c->srtt = sample;
		c->rttvar = sample / 2;
	} else {
		uint32_t off = sample > c->srtt ? sample - c->srtt : c->srtt - sample;
		c->rttvar = (3 * c->rttvar + off) / 4;
		c->srtt = (7 * c->srtt + sample) / 8;
	}
	c->rtt_start = 0;
}

/* acknowledged takes a segment's acknowledgement; it returns false when that is of nothing we sent. */
static bool acknowledged(struct conn *c, const struct segment *s)
{
	if (before(c->snd_max, s->ack))
		return false;
	if (before(s->ack, c->snd_una))
		return true; /* an old one */
	bool opened = c->snd_wnd == 0 && s->wnd > 0;
	size_t n = s->ack - c->snd_una;
	c->snd_wnd = s->wnd;
	if (n == 0 && !opened)
		return true;
	if (n > c->tx_len) {
		c->fin_acked = true;
		n = c->tx_len;
	}
	c->tx_len -= (uint16_t)n;
	memmove(conn_tx(c), conn_tx(c) + n, c->tx_len);
	c->snd_una = s->ack;
	/* What was sent into a closed window was most likely thrown away. */
	if (opened || before(c->snd_nxt, c->snd_una))
		c->snd_nxt = c->snd_una;
	measure(c);
	c->backoff = 0;
	c->progress = now;
	restart_timer(c);
	return true;
}

/* accept_data takes what is next in order, as far as there is room; the rest the peer sends again. */
static void accept_data(struct conn *c, const struct segment *s)
{
	size_t len = s->len;
	bool fin = s->flags & FIN;

	if (len == 0 && !fin)
		return;
	c->ack_due = true;
	if (c->peer_fin)
		return;
	if (!c->closing) {
		len = min_size(len, RECEIVE_SIZE - c->rx_len);
		memcpy(conn_rx(c) + c->rx_len, s->data, len);
		c->rx_len += (uint16_t)len;
	}
	c->rcv_nxt += (uint32_t)len;
	if (fin && len == s->len) {
		c->rcv_nxt++;
		c->peer_fin = true;
	}
}

/*
 * in_order cuts off what was received before and says whether the rest is the
 * next to come. What is not gets an acknowledgement of what we have, which is
 * all that the peer needs in order to send again what is missing.
 */
static bool in_order(struct conn *c, struct segment *s)
{
	size_t old = c->rcv_nxt - s->seq;

	if (old == 0)
		return true;
	c->ack_due = true;
	if (before(c->rcv_nxt, s->seq))
		return false;
	if (old >= s->len + !!(s->flags & FIN))
		return false;
	s->data += old;
	s->len -= old;
	s->seq = c->rcv_nxt;
	return true;
}

/* settle does what follows from a connection's new state. */
static void settle(struct conn *c)
{
	if (!c->closing)
		http_input(c);
	tcp_flush(c);
	if (!c->fin_acked || !c->peer_fin)
		return;
	if (!c->linger) {
		forget(c);
		return;
	}
	if (c->time_wait)
		return;
	http_closed(c);
	conn_time_wait(c);
	restart_timer(c);
}

static void established(struct conn *c, struct segment *s)
{
	if (s->flags & RST) {
		/* Only the exact next number proves that a reset is the peer's (RFC 5961). */
		if (s->seq == c->rcv_nxt)
			forget(c);
		else if (s->seq - c->rcv_nxt < RECEIVE_SIZE)
			send(c, 0, 0);
		return;
	}
	if (s->flags & SYN) {
		send(c, 0, 0);
		return;
	}
	if (!(s->flags & ACK))
		return;
	bool next = in_order(c, s);
	bool future = before(c->rcv_nxt, s->seq);
	if (next || (future && s->seq - c->rcv_nxt < RECEIVE_SIZE)) {
		if (!acknowledged(c, s)) {
			send(c, 0, 0);
			return;
		}
		if (next)
			accept_data(c, s);
		if (!c->retransmitting && !c->fin_acked)
			restart_timer(c);
	}
	settle(c);
}

/* listening takes a segment that belongs to no connection. */
static void listening(struct segment *s)
{
	if (s->flags & RST)
		return;
	if (s->dst_port != listen_port || (s->flags & (SYN | ACK)) == 0 || (s->flags & (SYN | ACK)) == (SYN | ACK)) {
		segment_reset(s);
		return;
	}
	if (s->flags & SYN) {
		/* Without room a SYN is not answered: the peer will try again, by then there may be some. */
		if (conn_room())
			segment_syn_ack(s, listen_port, cookie_make(s->ip, s->src_port, s->seq, s->mss));
		return;
	}
	uint32_t gap;
	uint16_t mss = cookie_check(s->ip, s->src_port, s->seq - 1, s->ack - 1, &gap);
	if (mss == 0) {
		segment_reset(s);
		return;
	}
	if (gap > 0)
		return; /* the segments before it were lost, and will come again */
	struct conn *c = conn_make(s->ip, s->src_port);
	if (c == NULL)
		return;
	c->mss = mss < segment_mss() ? mss : segment_mss();
	c->rcv_nxt = s->seq;
	c->rcv_edge = s->seq + RECEIVE_SIZE;
	c->snd_una = c->snd_nxt = c->snd_max = s->ack;
	established(c, s);
}

void tcp_input(const struct ip_header *ip, const uint8_t *data, size_t len)
{
	struct segment s;

	if (!segment_read(ip, data, len, &s))
		return;
	struct conn *c = s.dst_port == listen_port ? conn_find(s.ip, s.src_port) : NULL;
	/* A peer that uses its port again starts anew, without waiting for the end of our TIME-WAIT. */
	if (c != NULL && c->time_wait && (s.flags & (SYN | ACK | RST)) == SYN) {
		conn_free(c);
		c = NULL;
	}
	if (c != NULL)
		established(c, &s);
	else
		listening(&s);
}

/* retransmit starts again from what is not acknowledged, or tries a closed window with one byte. */
static void retransmit(struct conn *c)
{
	if (now - c->progress > GIVE_UP) {
		send(c, 0, RST);
		forget(c);
		return;
	}
	if (c->backoff < 10)
		c->backoff++;
	c->rtt_start = 0;
	c->snd_nxt = c->snd_una;
	if (c->snd_wnd == 0 && c->tx_len > 0)
		send(c, 1, 0);
	else
		output(c);
	restart_timer(c);
}

void tcp_timer(unsigned id)
{
	struct conn *c = conn_at(id);

	if (c->retransmitting) {
		retransmit(c);
	} else if (c->fin_acked) {
		forget(c);
	} else if (c->http.sleeping) {
		restart_timer(c);
	} else {
		tcp_close(c);
		flush(c);
	}
}
