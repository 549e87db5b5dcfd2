/* The little of a C library that is needed, and text built in a fixed buffer. */
#ifndef LIB_H
#define LIB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *dst, const void *src, size_t n);
void *memmove(void *dst, const void *src, size_t n);
void *memset(void *dst, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* A piece of text that lies somewhere else. */
struct slice {
	const char *at;
	size_t len;
};

bool slice_is(struct slice s, const char *text);

/* slice_is_nocase compares ASCII letters regardless of case; text is lower case. */
bool slice_is_nocase(struct slice s, const char *text);

/* slice_cut splits s at the first mark; without one, before is all of s and it returns false. */
bool slice_cut(struct slice s, char mark, struct slice *before, struct slice *after);

/* slice_prefix takes the prefix from s and says whether it was there. */
bool slice_prefix(struct slice *s, const char *prefix);

/* slice_number reads a decimal number of at most max; nothing else may stand in s. */
bool slice_number(struct slice s, uint64_t max, uint64_t *number);

/* Text that grows in a buffer; what does not fit is left out. */
struct text {
	char *at;
	size_t cap, len;
};

void text_add(struct text *t, struct slice s);
void text_str(struct text *t, const char *s);
void text_number(struct text *t, uint64_t n);
void text_ipv4(struct text *t, uint32_t address);

static inline size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

#endif
