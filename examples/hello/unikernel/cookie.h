/*
 * A SYN is answered without remembering anything: all that is needed later is
 * in the sequence number of the answer, which the peer's next segment brings
 * back (RFC 4987 §3.6). So half-open connections cost nothing, however many.
 * The price is that a lost SYN-ACK is not sent again before the next SYN, and
 * that TCP's options other than MSS cannot be used.
 */
#ifndef COOKIE_H
#define COOKIE_H

#include "lib.h"

void cookie_start(void);

/* cookie_make is the sequence number of our SYN to a peer whose own is seq and who takes segments of mss. */
uint32_t cookie_make(uint32_t ip, uint16_t port, uint32_t seq, uint16_t mss);

/*
 * cookie_check returns the MSS in a cookie, or 0 when we did not make it or
 * too long ago. gap is how far seq is behind the peer's SYN: more than 0 when
 * what the peer sent before was lost.
 */
uint16_t cookie_check(uint32_t ip, uint16_t port, uint32_t seq, uint32_t cookie, uint32_t *gap);

#endif
