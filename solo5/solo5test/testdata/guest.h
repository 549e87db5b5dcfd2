/*
 * What the guests for tests have in common: the notes of an image, and words
 * and numbers on a command line. Built with -DNETS=N they declare N network
 * devices, net0 to net(N-1), and with -DBLOCKS=N block devices, disk0 and on.
 */
#include <stddef.h>
#include <stdint.h>

#ifndef NETS
#define NETS 0
#endif
#ifndef BLOCKS
#define BLOCKS 0
#endif

enum { HVT = 1, SPT = 2 };
enum { BLOCK = 1, NET = 2 };
enum { NET0 = 1, DISK0 = 1 + NETS };

struct entry {
	char name[68];
	uint32_t type;
	union {
		struct { uint64_t capacity; uint16_t block_size; } block;
		struct { uint8_t mac[6]; uint16_t mtu; } net;
	} u;
	union { int32_t fd; void *data; } host;
	uint8_t attached;
};

struct manifest {
	uint32_t version, entries;
	struct entry e[1 + NETS + BLOCKS];
};

struct note_header { uint32_t name_size, size, type; char name[8]; };

__attribute__((section(".note.solo5.abi"), aligned(4), used))
static const struct { struct note_header h; uint32_t target, version, zero[2]; } abi = {
	{ 6, 16, 0x31494241, "Solo5" }, TARGET, 2, { 0, 0 },
};

__attribute__((section(".note.solo5.manifest"), aligned(8), used))
static const struct { struct note_header h; struct manifest m; } manifest = {
	{ 6, 4 + sizeof(struct manifest), 0x3154464d, "Solo5" },
	{ 1, 1 + NETS + BLOCKS, {
		{ .type = 1u << 30 },
#if NETS > 0
		{ .name = "net0", .type = 2 },
#endif
#if NETS > 1
		{ .name = "net1", .type = 2 },
#endif
#if BLOCKS > 0
		{ .name = "disk0", .type = 1 },
#endif
#if BLOCKS > 1
		{ .name = "disk1", .type = 1 },
#endif
	} },
};

/* Each target has its own. */
static void say(const char *s);
static void quit(int status) __attribute__((noreturn));

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static void say_number(uint64_t n)
{
	char text[21];
	int at = 20;
	text[at] = 0;
	do
		text[--at] = (char)('0' + n % 10);
	while (n /= 10);
	say(text + at);
}

static void say_field(const char *name, uint64_t value)
{
	say(name);
	say("=");
	say_number(value);
	say("\n");
}

/* is returns what follows the word at the start of the line, or NULL. */
static const char *is(const char *line, const char *word)
{
	while (*word && *line == *word)
		line++, word++;
	if (*word || (*line && *line != ' '))
		return NULL;
	return *line ? line + 1 : line;
}

static uint64_t number(const char *s)
{
	uint64_t n = 0;
	while (*s >= '0' && *s <= '9')
		n = 10 * n + (uint64_t)(*s++ - '0');
	return n;
}

/* next returns what follows the first word of the line. */
static inline const char *next(const char *line)
{
	while (*line && *line != ' ')
		line++;
	return *line ? line + 1 : line;
}

static char initialized[] = "initialized";
static char zero[3 * 4096];

static void show_boot(uint64_t memory, uint64_t kernel_end, const struct manifest *m, uintptr_t stack)
{
	say_field("memory", memory);
	say_field("stack_below_end", memory - stack);
	say_field("kernel_end", kernel_end);
	say_field("bss_end", (uintptr_t)zero + sizeof zero);
	uint64_t sum = 0;
	for (size_t n = 0; n < sizeof zero; n++)
		sum += (uint8_t)zero[n];
	say_field("bss_sum", sum);
	say(initialized);
	say("\n");
	for (uint32_t n = 0; n < m->entries; n++) {
		const struct entry *e = &m->e[n];
		say_field("entry", n);
		say_field(e->name, e->type);
		if (e->type == BLOCK) {
			say_field("capacity", e->u.block.capacity);
			say_field("block_size", e->u.block.block_size);
			say_field("attached", e->attached);
		}
		if (e->type != NET)
			continue;
		for (int i = 0; i < 6; i++)
			say_field("mac", e->u.net.mac[i]);
		say_field("mtu", e->u.net.mtu);
		say_field("attached", e->attached);
	}
}
