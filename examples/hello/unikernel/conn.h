/* The table of connections. */
#ifndef CONN_H
#define CONN_H

#include "tcp.h"

void conn_start(void);

struct conn *conn_find(uint32_t ip, uint16_t port);

/* conn_room says whether conn_make would find a place. */
bool conn_room(void);

/* conn_make returns a new connection, zeroed but for its peer; NULL when all places are taken. */
struct conn *conn_make(uint32_t ip, uint16_t port);

void conn_free(struct conn *c);

/* conn_time_wait marks a connection as one that may be forgotten when its place is needed. */
void conn_time_wait(struct conn *c);

/* conn_id is the connection's index, conn_at the other way. */
unsigned conn_id(const struct conn *c);
struct conn *conn_at(unsigned id);

/* Its buffers, RECEIVE_SIZE and SEND_SIZE long. */
uint8_t *conn_rx(const struct conn *c);
uint8_t *conn_tx(const struct conn *c);

#endif
