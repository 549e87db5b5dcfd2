#include "cookie.h"
#include "net.h"
#include "random.h"
#include "tcp.h"
#include "timer.h"

/* A cookie is good in the period in which it was made and in the next. */
#define PERIOD (32 * SECOND)

static const uint16_t sizes[8] = {128, 536, 1024, 1220, 1340, 1400, 1440, 1460};

static struct key key;

void cookie_start(void)
{
	key = random_key();
}

/*
 * The low three bits hold the size. The others are the peer's number plus a
 * secret, so that the peer's number can be had back, but for its upper bits.
 */
enum { SIZE_BITS = 3, NUMBER_MASK = UINT32_MAX >> SIZE_BITS };

static uint32_t secret(uint32_t ip, uint16_t port, uint64_t period, uint32_t size)
{
	return (uint32_t)keyed_hash(&key, ip, (uint64_t)port << 8 | size, period);
}

uint32_t cookie_make(uint32_t ip, uint16_t port, uint32_t seq, uint16_t mss)
{
	uint32_t size = 7;

	while (size > 0 && sizes[size] > mss)
		size--;
	return (secret(ip, port, now / PERIOD, size) + seq) << SIZE_BITS | size;
}

uint16_t cookie_check(uint32_t ip, uint16_t port, uint32_t seq, uint32_t cookie, uint32_t *gap)
{
	uint64_t period = now / PERIOD;
	uint32_t size = cookie & 7;

	for (uint64_t age = 0; age < 2; age++) {
		uint32_t number = (cookie >> SIZE_BITS) - secret(ip, port, period - age, size);
		*gap = (seq - number) & NUMBER_MASK;
		if (*gap < RECEIVE_SIZE)
			return sizes[size];
	}
	return 0;
}
