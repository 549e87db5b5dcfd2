#include "net.h"

uint64_t checksum_add(uint64_t sum, const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t word;
	uint16_t half;

	/* Only the last piece may be odd: no caller adds anything after it. */
	for (; len >= 4; len -= 4, p += 4) {
		__builtin_memcpy(&word, p, 4);
		sum += word;
	}
	if (len >= 2) {
		__builtin_memcpy(&half, p, 2);
		sum += half;
		len -= 2;
		p += 2;
	}
	if (len > 0)
		sum += *p;
	return sum;
}

uint64_t checksum_pseudo(uint32_t src, uint32_t dst, uint8_t protocol, size_t len)
{
	return (uint64_t)swap32(src) + swap32(dst) + swap16(protocol) + swap16((uint16_t)len);
}

uint16_t checksum_fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}
