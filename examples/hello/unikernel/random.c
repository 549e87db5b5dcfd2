#include "random.h"
#include "platform.h"

static uint64_t rotate(uint64_t x, int by)
{
	return x << by | x >> (64 - by);
}

static void mix(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] = rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[2] = rotate(v[2], 32);
}

uint64_t keyed_hash(const struct key *key, uint64_t a, uint64_t b, uint64_t c)
{
	const uint64_t words[4] = {a, b, c, (uint64_t)24 << 56};
	uint64_t v[4] = {
		key->k[0] ^ UINT64_C(0x736f6d6570736575),
		key->k[1] ^ UINT64_C(0x646f72616e646f6d),
		key->k[0] ^ UINT64_C(0x6c7967656e657261),
		key->k[1] ^ UINT64_C(0x7465646279746573),
	};

	for (int i = 0; i < 4; i++) {
		v[3] ^= words[i];
		mix(v);
		mix(v);
		v[0] ^= words[i];
	}
	v[2] ^= 0xff;
	for (int i = 0; i < 4; i++)
		mix(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* rdrand returns 0 where the processor cannot, or does not want to. */
static uint64_t rdrand(void)
{
	uint32_t a = 1, b, c = 0, d;
	uint64_t value;
	bool ok;

	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	if (!(c & 1u << 30))
		return 0;
	for (int tries = 0; tries < 10; tries++) {
		__asm__ volatile("rdrand %0" : "=r"(value), "=@ccc"(ok) : : "cc");
		if (ok)
			return value;
	}
	return 0;
}

static uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

struct key random_key(void)
{
	struct key raw = {{rdrand() ^ rdtsc(), rdrand() ^ plat_now()}}, key;

	key.k[0] = keyed_hash(&raw, rdtsc(), 0, 0);
	key.k[1] = keyed_hash(&raw, rdtsc(), 1, 0);
	return key;
}
