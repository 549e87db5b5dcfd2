/* HTTP/1.1 (RFC 9112) and what this unikernel has to say. */
#ifndef HTTP_H
#define HTTP_H

#include "tcp.h"

/* http_start sets what GET / answers; an unhealthy one answers 503 to everything. */
void http_start(struct slice hello, bool unhealthy);

/* http_input looks at a connection after bytes or a FIN came, or room for answers. */
void http_input(struct conn *c);

/* http_closed hears that a connection is over. */
void http_closed(const struct conn *c);

/* http_timer ends a sleep. */
void http_timer(unsigned id);

/* http_exit ends the unikernel as a request asked for, even if its answer was never acknowledged. */
void http_exit(void);

#endif
