/*
 * All timers, in one array: a timer is a slot with a deadline. Looking through
 * the array is cheap and happens only when a timer may have fired.
 */
#ifndef TIMER_H
#define TIMER_H

#include "tcp.h"

#define MILLISECOND UINT64_C(1000000)
#define SECOND (1000 * MILLISECOND)

/* Two slots for each connection, TCP's and HTTP's, and some of their own. */
enum {
	TIMER_TCP = 0,
	TIMER_HTTP = TIMER_TCP + CONNECTIONS,
	TIMER_ANNOUNCE = TIMER_HTTP + CONNECTIONS,
	TIMER_EXIT,
	TIMERS,
};

/* timer_set replaces the slot's deadline; NEVER stops it. */
void timer_set(unsigned slot, uint64_t deadline);

/* timer_next is a time before which no timer fires; there need not be one that does then. */
uint64_t timer_next(void);

/* timer_run calls the owners of all timers that are due. */
void timer_run(void);

#endif
