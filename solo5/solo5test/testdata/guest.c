/*
 * A guest for the tests of the tender: the first word of its command line says
 * what it does. Built with -DNETS=N it declares N network devices, net0 to
 * net(N-1).
 */
#include <stddef.h>
#include <stdint.h>

#ifndef NETS
#define NETS 0
#endif

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
	struct entry e[NETS + 1];
};

struct boot {
	uint64_t memory, kernel_end;
	const char *cmdline;
	const struct manifest *manifest;
	int32_t epoll, timer;
};

struct note_header { uint32_t name_size, size, type; char name[8]; };

__attribute__((section(".note.solo5.abi"), aligned(4), used))
static const struct { struct note_header h; uint32_t target, version, zero[2]; } abi = {
	{ 6, 16, 0x31494241, "Solo5" }, 2, 2, { 0, 0 },
};

__attribute__((section(".note.solo5.manifest"), aligned(8), used))
static const struct { struct note_header h; struct manifest m; } manifest = {
	{ 6, 4 + sizeof(struct manifest), 0x3154464d, "Solo5" },
	{ 1, NETS + 1, {
		{ .type = 1u << 30 },
#if NETS > 0
		{ .name = "net0", .type = 2 },
#endif
#if NETS > 1
		{ .name = "net1", .type = 2 },
#endif
	} },
};

static long call(long nr, long a, long b, long c, long d, long e)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = 0;
	__asm__ volatile("syscall" : "=a"(result)
		: "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return result;
}

enum { READ = 0, WRITE = 1, MMAP = 9, DUP = 32, GETPID = 39, ARCH_PRCTL = 158,
	CLOCK_GETTIME = 228, EXIT_GROUP = 231, EPOLL_PWAIT = 281, TIMERFD_SETTIME = 286 };

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s) { call(WRITE, 1, (long)s, (long)length(s), 0, 0); }

static void quit(int status)
{
	call(EXIT_GROUP, status, 0, 0, 0, 0);
	__builtin_trap();
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

static long number(const char *s)
{
	long n = 0;
	while (*s >= '0' && *s <= '9')
		n = 10 * n + (*s++ - '0');
	return n;
}

static char initialized[] = "initialized";
static char zero[3 * 4096];

static void show_boot(const struct boot *b, uintptr_t stack)
{
	say_field("memory", b->memory);
	say_field("stack_below_end", b->memory - stack);
	say_field("kernel_end", b->kernel_end);
	say_field("bss_end", (uintptr_t)zero + sizeof zero);
	uint64_t sum = 0;
	for (size_t n = 0; n < sizeof zero; n++)
		sum += (uint8_t)zero[n];
	say_field("bss_sum", sum);
	say(initialized);
	say("\n");
	for (uint32_t n = 0; n < b->manifest->entries; n++) {
		const struct entry *e = &b->manifest->e[n];
		say_field("entry", n);
		say_field(e->name, e->type);
		if (e->type != 2)
			continue;
		for (int i = 0; i < 6; i++)
			say_field("mac", e->u.net.mac[i]);
		say_field("mtu", e->u.net.mtu);
		say_field("attached", e->attached);
	}
}

struct event { uint32_t events; uint64_t data; } __attribute__((packed));

/* sleep waits on the timer alone. */
static void wait_timer(const struct boot *b, long seconds)
{
	long when[4] = { 0, 0, seconds, 1 };
	struct event e = { 0, 0 };
	if (call(TIMERFD_SETTIME, b->timer, 0, (long)when, 0, 0) != 0)
		quit(101);
	if (call(EPOLL_PWAIT, b->epoll, (long)&e, 1, -1, 0) != 1 || e.data != 0xfffffffe)
		quit(102);
}

/* echo sends each frame back to its sender, count of them. */
static void echo(const struct boot *b, long count)
{
	static uint8_t frame[2048];
	while (count > 0) {
		struct event e = { 0, 0 };
		if (call(EPOLL_PWAIT, b->epoll, (long)&e, 1, -1, 0) != 1)
			quit(103);
		const struct entry *device = &b->manifest->e[e.data];
		long n = call(READ, device->host.fd, (long)frame, sizeof frame, 0, 0);
		if (n == -11)
			continue;
		if (n < 14)
			quit(104);
		/* only what is for this device; the kernel says hello on its own */
		int mine = 1;
		for (int i = 0; i < 6; i++)
			mine &= frame[i] == device->u.net.mac[i];
		if (!mine)
			continue;
		for (int i = 0; i < 6; i++) {
			frame[i] = frame[6 + i];
			frame[6 + i] = device->u.net.mac[i];
		}
		if (call(WRITE, device->host.fd, (long)frame, n, 0, 0) != n)
			quit(105);
		count--;
	}
}

static void misbehave(const char *how)
{
	volatile char *text = (volatile char *)0x100000;
	if (is(how, "getpid"))
		call(GETPID, 0, 0, 0, 0, 0);
	else if (is(how, "mmap"))
		call(MMAP, 0x200000, 4096, 7, 0x32, -1);
	else if (is(how, "write-stderr"))
		call(WRITE, 2, (long)"x", 1, 0, 0);
	else if (is(how, "write-high"))
		call(WRITE, 0x100000001, (long)"x", 1, 0, 0);
	else if (is(how, "read-stdin"))
		call(READ, 0, (long)zero, 1, 0, 0);
	else if (is(how, "read-console"))
		call(READ, 1, (long)zero, 1, 0, 0);
	else if (is(how, "clock"))
		call(CLOCK_GETTIME, 7, (long)zero, 0, 0, 0);
	else if (is(how, "set-gs"))
		call(ARCH_PRCTL, 0x1001, 0, 0, 0, 0);
	else if (is(how, "x32"))
		call(0x40000000 | WRITE, 1, (long)"x", 1, 0, 0);
	else if (is(how, "int80")) /* write is 4 there, exit 1 */
		__asm__ volatile("int $0x80" : : "a"(1), "b"(0) : "memory");
	else if (is(how, "write-text"))
		*text = 0;
	else if (is(how, "write-rodata"))
		*(volatile uint32_t *)&abi.version = 3;
	else if (is(how, "run-data")) {
		zero[0] = (char)0xc3;
		((void (*)(void))(uintptr_t)zero)();
	} else if (is(how, "run-stack")) {
		volatile char code[1] = { (char)0xc3 };
		((void (*)(void))(uintptr_t)code)();
	} else if (is(how, "read-zero"))
		(void)*(volatile char *)0;
	else if (is(how, "read-below"))
		(void)*(volatile char *)0xf000;
	else if (is(how, "read-behind"))
		(void)*(volatile char *)0x7fff0000;
	else if (is(how, "write-trampoline"))
		*(volatile char *)0x200000000000 = 0;
}

__attribute__((used)) static void run(const struct boot *b, uintptr_t stack)
{
	const char *line = b->cmdline, *rest;
	if ((rest = is(line, "hello")))
		say("hello\n"), quit((int)number(rest));
	if ((rest = is(line, "say")))
		say(rest), quit(0);
	if (is(line, "boot"))
		show_boot(b, stack), quit(0);
	if ((rest = is(line, "sleep")))
		say("up\n"), wait_timer(b, number(rest)), quit(0);
	if ((rest = is(line, "echo")))
		say("up\n"), echo(b, number(rest)), quit(0);
	if (is(line, "clocks")) {
		long when[2] = { 0, 0 };
		long bad = call(CLOCK_GETTIME, 0, (long)when, 0, 0, 0);
		bad |= call(CLOCK_GETTIME, 1, (long)when, 0, 0, 0);
		bad |= call(ARCH_PRCTL, 0x1002, (long)zero, 0, 0, 0);
		quit(bad != 0);
	}
	if ((rest = is(line, "misbehave")))
		misbehave(rest), quit(0); /* it should not come to this */
	quit(100);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rsi\n"
	"	jmp run\n");
