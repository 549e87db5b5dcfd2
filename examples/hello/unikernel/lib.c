#include "lib.h"

/*
 * The string instructions are as fast as anything that may not use SSE, and
 * the compiler cannot turn them into a call of the function they are in.
 */
void *memcpy(void *dst, const void *src, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

void *memmove(void *dst, const void *src, size_t n)
{
	unsigned char *d = dst;
	const unsigned char *s = src;

	if ((uintptr_t)d - (uintptr_t)s >= n)
		return memcpy(dst, src, n);
	while (n-- > 0)
		d[n] = s[n];
	return dst;
}

void *memset(void *dst, int value, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
	return dst;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const unsigned char *x = a, *y = b;

	for (; n > 0; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n] != '\0')
		n++;
	return n;
}

bool slice_is(struct slice s, const char *text)
{
	return s.len == strlen(text) && memcmp(s.at, text, s.len) == 0;
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

bool slice_is_nocase(struct slice s, const char *text)
{
	size_t i = 0;

	for (; i < s.len && text[i] != '\0'; i++)
		if (lower(s.at[i]) != text[i])
			return false;
	return i == s.len && text[i] == '\0';
}

bool slice_cut(struct slice s, char mark, struct slice *before, struct slice *after)
{
	size_t i = 0;

	while (i < s.len && s.at[i] != mark)
		i++;
	bool found = i < s.len;
	size_t rest = found ? i + 1 : i;
	*before = (struct slice){s.at, i};
	*after = (struct slice){s.at + rest, s.len - rest};
	return found;
}

bool slice_prefix(struct slice *s, const char *prefix)
{
	size_t n = strlen(prefix);

	if (s->len < n || memcmp(s->at, prefix, n) != 0)
		return false;
	s->at += n;
	s->len -= n;
	return true;
}

bool slice_number(struct slice s, uint64_t max, uint64_t *number)
{
	uint64_t n = 0;

	if (s.len == 0 || s.len > 19)
		return false;
	for (size_t i = 0; i < s.len; i++) {
		if (s.at[i] < '0' || s.at[i] > '9')
			return false;
		n = n * 10 + (uint64_t)(s.at[i] - '0');
	}
	*number = n;
	return n <= max;
}

void text_add(struct text *t, struct slice s)
{
	size_t n = min_size(s.len, t->cap - t->len);

	memcpy(t->at + t->len, s.at, n);
	t->len += n;
}

void text_str(struct text *t, const char *s)
{
	text_add(t, (struct slice){s, strlen(s)});
}

void text_number(struct text *t, uint64_t n)
{
	char digits[20];
	size_t i = sizeof digits;

	do {
		digits[--i] = (char)('0' + n % 10);
		n /= 10;
	} while (n > 0);
	text_add(t, (struct slice){digits + i, sizeof digits - i});
}

void text_ipv4(struct text *t, uint32_t address)
{
	for (int shift = 24; shift >= 0; shift -= 8) {
		text_number(t, address >> shift & 0xff);
		if (shift > 0)
			text_str(t, ".");
	}
}
