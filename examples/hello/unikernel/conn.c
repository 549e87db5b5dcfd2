#include "conn.h"
#include "random.h"
#include "timer.h"

enum { BUCKETS = 2048 };

/* A reference to a connection is its index + 1, so that zeroed memory means none. */
static uint16_t buckets[BUCKETS];
static struct conn conns[CONNECTIONS];

/* The buffers lie apart: an idle connection's are not touched, and so take no memory of the host. */
static uint8_t rx[CONNECTIONS][RECEIVE_SIZE] __attribute__((aligned(4096)));
static uint8_t tx[CONNECTIONS][SEND_SIZE] __attribute__((aligned(4096)));

static struct key key;
static uint16_t free_list;
static unsigned ever_used; /* places from here on were never taken */
static unsigned open, time_waits;

void conn_start(void)
{
	key = random_key();
}

unsigned conn_id(const struct conn *c)
{
	return (unsigned)(c - conns);
}

struct conn *conn_at(unsigned id)
{
	return &conns[id];
}

uint8_t *conn_rx(const struct conn *c)
{
	return rx[conn_id(c)];
}

uint8_t *conn_tx(const struct conn *c)
{
	return tx[conn_id(c)];
}

static uint16_t *bucket(uint32_t ip, uint16_t port)
{
	return &buckets[keyed_hash(&key, ip, port, 0) % BUCKETS];
}

struct conn *conn_find(uint32_t ip, uint16_t port)
{
	for (uint16_t ref = *bucket(ip, port); ref != 0; ref = conns[ref - 1].next)
		if (conns[ref - 1].ip == ip && conns[ref - 1].port == port)
			return &conns[ref - 1];
	return NULL;
}

bool conn_room(void)
{
	return open < CONNECTIONS || time_waits > 0;
}

/* reclaim frees a connection in TIME-WAIT; going round takes about the oldest. */
static void reclaim(void)
{
	static unsigned hand;

	for (unsigned i = 0; i < CONNECTIONS; i++) {
		hand = (hand + 1) % CONNECTIONS;
		if (conns[hand].time_wait) {
			conn_free(&conns[hand]);
			return;
		}
	}
}

struct conn *conn_make(uint32_t ip, uint16_t port)
{
	struct conn *c;

	if (!conn_room())
		return NULL;
	if (open == CONNECTIONS)
		reclaim();
	if (free_list != 0) {
		c = &conns[free_list - 1];
		free_list = c->next;
	} else {
		c = &conns[ever_used++];
	}
	uint16_t *head = bucket(ip, port);
	*c = (struct conn){.ip = ip, .port = port, .next = *head};
	*head = (uint16_t)(conn_id(c) + 1);
	open++;
	return c;
}

void conn_free(struct conn *c)
{
	uint16_t ref = (uint16_t)(conn_id(c) + 1), *at = bucket(c->ip, c->port);

	while (*at != ref)
		at = &conns[*at - 1].next;
	*at = c->next;
	timer_set(TIMER_TCP + conn_id(c), NEVER);
	timer_set(TIMER_HTTP + conn_id(c), NEVER);
	if (c->time_wait)
		time_waits--;
	*c = (struct conn){.next = free_list};
	free_list = ref;
	open--;
}

void conn_time_wait(struct conn *c)
{
	if (!c->time_wait)
		time_waits++;
	c->time_wait = true;
}
