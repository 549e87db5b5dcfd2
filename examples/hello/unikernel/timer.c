#include "timer.h"
#include "http.h"
#include "net.h"

/* 0 is "not set", so that the array needs no initialisation and no memory until it is used. */
static uint64_t deadlines[TIMERS];
static uint64_t next = NEVER;

void timer_set(unsigned slot, uint64_t deadline)
{
	deadlines[slot] = deadline == NEVER ? 0 : deadline;
	/* next is not raised when its own timer is put off: most are, and one look too many finds the true one. */
	if (deadline < next)
		next = deadline;
}

uint64_t timer_next(void)
{
	return next;
}

static void fire(unsigned slot)
{
	if (slot < TIMER_HTTP)
		tcp_timer(slot - TIMER_TCP);
	else if (slot < TIMER_ANNOUNCE)
		http_timer(slot - TIMER_HTTP);
	else if (slot == TIMER_ANNOUNCE)
		arp_timer();
	else
		http_exit();
}

void timer_run(void)
{
	if (now < next)
		return;
	for (unsigned slot = 0; slot < TIMERS; slot++) {
		if (deadlines[slot] == 0 || deadlines[slot] > now)
			continue;
		deadlines[slot] = 0;
		fire(slot);
	}
	next = NEVER;
	for (unsigned slot = 0; slot < TIMERS; slot++)
		if (deadlines[slot] != 0 && deadlines[slot] < next)
			next = deadlines[slot];
}
