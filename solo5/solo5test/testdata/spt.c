/*
 * A guest of the target spt: the first word of its command line says what it does.
 */
#define TARGET SPT
#include "guest.h"

struct boot {
	uint64_t memory, kernel_end;
	const char *cmdline;
	const struct manifest *manifest;
	int32_t epoll, timer;
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

enum { READ = 0, WRITE = 1, MMAP = 9, PREAD64 = 17, PWRITE64 = 18, DUP = 32, GETPID = 39, ARCH_PRCTL = 158,
	CLOCK_GETTIME = 228, EXIT_GROUP = 231, EPOLL_PWAIT = 281, TIMERFD_SETTIME = 286 };

static void say(const char *s) { call(WRITE, 1, (long)s, (long)length(s), 0, 0); }

static void quit(int status)
{
	call(EXIT_GROUP, status, 0, 0, 0, 0);
	__builtin_trap();
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

#if BLOCKS > 0
/* disk does "read OFFSET LENGTH" or "write OFFSET LENGTH BYTE" with disk0 and shows what came of it. */
static void disk(const struct boot *b, const char *how)
{
	static uint8_t sector[65536];
	const char *rest;
	long nr = (rest = is(how, "read")) ? PREAD64 : PWRITE64;
	if (!rest)
		rest = next(how);
	uint64_t offset = number(rest), len = number(next(rest)), byte = number(next(next(rest)));
	for (size_t n = 0; n < sizeof sector; n++)
		sector[n] = (uint8_t)byte;
	long result = call(nr, b->manifest->e[DISK0].host.fd, (long)sector, (long)len, (long)offset, 0);
	say_field("result", (uint64_t)result);
	say_field("byte", sector[0]);
}
#endif

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
		show_boot(b->memory, b->kernel_end, b->manifest, stack), quit(0);
	if ((rest = is(line, "sleep")))
		say("up\n"), wait_timer(b, (long)number(rest)), quit(0);
	if ((rest = is(line, "echo")))
		say("up\n"), echo(b, (long)number(rest)), quit(0);
#if BLOCKS > 0
	if ((rest = is(line, "disk")))
		disk(b, rest), quit(0);
#endif
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
