/* Numbers that a stranger cannot guess. */
#ifndef RANDOM_H
#define RANDOM_H

#include "lib.h"

/* A key of keyed_hash. */
struct key {
	uint64_t k[2];
};

/* random_key makes a key from what the processor offers. */
struct key random_key(void);

/* keyed_hash is SipHash-2-4 of three words. */
uint64_t keyed_hash(const struct key *key, uint64_t a, uint64_t b, uint64_t c);

#endif
