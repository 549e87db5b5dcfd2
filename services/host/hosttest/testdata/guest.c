/*
 * A unikernel (spt) for the tests of host. It has NETS network devices, net0 and on,
 * and drops what comes in on them. The first word of its command line says what it does:
 *
 *   exit N         says "exiting" and exits with status N
 *   later MS N     says "up", waits MS milliseconds and exits with status N
 *   wait           says "up" and waits
 *   args TEXT      says its whole command line and waits
 *   lines N        says "line 0" to "line N-1" and waits
 *   count MS       says "count 0", "count 1", ... one every MS milliseconds
 *   long N         says a line of N bytes, an empty one, and "end", and waits
 *   flood          says lines without a pause
 *   touch MS       waits MS milliseconds, writes to every page of its memory, says
 *                  "touched" and waits
 *   die            makes a system call that its filter does not know
 *
 * With --name=... in front it exits with status 64, as one that does not know the
 * option does; but for args.
 *
 * With RECORDED it does what those of the recorded sessions did: it has a device
 * service0 in place of net0, and with BLOCKS a block device storage. It says some lines,
 * and then waits; without any device it exits with status 0.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_GETPID = 39, SYS_EXIT = 231, SYS_EPOLL = 281, SYS_TIMER = 286 };

struct device {
	char name[68];
	uint32_t type;
	uint8_t mac[6];
	uint16_t mtu;
	uint64_t reserved;
	int32_t fd, unused;
	uint8_t attached;
};

#ifndef BLOCKS
#define BLOCKS 0
#endif
#ifdef RECORDED
#define NET0 "service0"
#else
#define NET0 "net0"
#endif

struct manifest {
	uint32_t version, entries;
	struct device device[NETS + BLOCKS + 1];
};

struct boot {
	uint64_t memory, kernel_end;
	const char *command_line;
	const struct manifest *manifest;
	int32_t epoll, timer;
};

struct note {
	uint32_t name_size, size, type;
	char name[8];
};

__attribute__((section(".note.solo5.abi"), aligned(4), used))
static const struct { struct note note; uint32_t abi[4]; } abi_note = {
	{ 6, 16, 0x31494241, "Solo5" }, { 2, 2, 0, 0 },
};

__attribute__((section(".note.solo5.manifest"), aligned(8), used))
static const struct { struct note note; struct manifest manifest; } manifest_note = {
	{ 6, 4 + sizeof(struct manifest), 0x3154464d, "Solo5" },
	{ 1, NETS + BLOCKS + 1, {
		{ .type = 1u << 30 },
#if NETS > 0
		{ .name = NET0, .type = 2 },
#endif
#if NETS > 1
		{ .name = "net1", .type = 2 },
#endif
#if BLOCKS > 0
		{ .name = "storage", .type = 1 },
#endif
	} },
};

static long syscall5(long number, long a, long b, long c, long d, long e)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(result)
		: "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
		: "rcx", "r11", "memory");
	return result;
}

static void quit(long status)
{
	for (;;)
		syscall5(SYS_EXIT, status, 0, 0, 0, 0);
}

static char out[65536];
static size_t out_len;

static void put(char c)
{
	if (out_len < sizeof out)
		out[out_len++] = c;
}

static void put_text(const char *s)
{
	while (*s)
		put(*s++);
}

static void put_number(uint64_t n)
{
	if (n > 9)
		put_number(n / 10);
	put((char)('0' + n % 10));
}

/* end_line writes what was put as one line. */
static void end_line(void)
{
	put('\n');
	syscall5(SYS_WRITE, 1, (long)out, (long)out_len, 0, 0);
	out_len = 0;
}

static void say(const char *s)
{
	put_text(s);
	end_line();
}

/* sleep_ms waits so long, or for ever if ms is negative. */
static void sleep_ms(const struct boot *b, long ms)
{
	struct { uint32_t events; uint64_t data; } __attribute__((packed)) event;
	static char frame[65536];
	long when[4] = { 0, 0, ms / 1000, ms % 1000 * 1000000 + 1 };

	if (ms >= 0)
		syscall5(SYS_TIMER, b->timer, 0, (long)when, 0, 0);
	for (;;) {
		if (syscall5(SYS_EPOLL, b->epoll, (long)&event, 1, -1, 0) != 1)
			continue;
		if (event.data == 0xfffffffe && ms >= 0)
			return;
		if (event.data <= NETS)
			syscall5(SYS_READ, b->manifest->device[event.data].fd, (long)frame, sizeof frame, 0, 0);
	}
}

static bool word(const char **line, const char *want)
{
	const char *s = *line;

	while (*want)
		if (*s++ != *want++)
			return false;
	if (*s != 0 && *s != ' ')
		return false;
	*line = *s ? s + 1 : s;
	return true;
}

static long number(const char **line)
{
	long n = 0;

	for (; **line >= '0' && **line <= '9'; (*line)++)
		n = 10 * n + **line - '0';
	if (**line == ' ')
		(*line)++;
	return n;
}

static void touch(const struct boot *b)
{
	/* the last 64 KB are the stack's */
	for (uint64_t at = b->kernel_end; at < b->memory - 65536; at += 4096)
		*(volatile char *)at = 1;
}

__attribute__((used)) static void run(const struct boot *b)
{
	const char *line = b->command_line;
	bool named = line[0] == '-' && line[1] == '-' && line[2] == 'n';

#ifdef RECORDED
	for (long i = 0; i < 16; i++)
		put_text("hello "), put_number((uint64_t)i), end_line();
	if (NETS + BLOCKS == 0)
		quit(0);
	sleep_ms(b, -1);
#endif
	while (named && *line && *line++ != ' ')
		;
	if (word(&line, "args"))
		say(b->command_line), sleep_ms(b, -1);
	if (named)
		quit(64);
	if (word(&line, "exit"))
		say("exiting"), quit(number(&line));
	if (word(&line, "later")) {
		say("up");
		sleep_ms(b, number(&line));
		quit(number(&line));
	}
	if (word(&line, "wait"))
		say("up"), sleep_ms(b, -1);
	if (word(&line, "lines")) {
		for (long i = 0, n = number(&line); i < n; i++)
			put_text("line "), put_number((uint64_t)i), end_line();
		sleep_ms(b, -1);
	}
	if (word(&line, "count")) {
		for (long i = 0, ms = number(&line);; i++)
			put_text("count "), put_number((uint64_t)i), end_line(), sleep_ms(b, ms);
	}
	if (word(&line, "long")) {
		for (long n = number(&line); n > 0; n--)
			put('x');
		end_line();
		end_line();
		say("end");
		sleep_ms(b, -1);
	}
	if (word(&line, "flood"))
		for (;;)
			say("this is a flood of lines that nobody wants to read");
	if (word(&line, "touch"))
		sleep_ms(b, number(&line)), touch(b), say("touched"), sleep_ms(b, -1);
	if (word(&line, "die"))
		say("dying"), syscall5(SYS_GETPID, 0, 0, 0, 0, 0);
	quit(100);
}

/* The stack pointer is a multiple of 16 less 8, as after a call. */
__asm__(".globl _start\n_start: jmp run\n");
