/*
 * A guest of the target hvt: the first word of its command line says what it
 * does. It is built without SSE, which not every /dev/kvm can run.
 */
#define TARGET HVT
#include "guest.h"

struct boot {
	uint64_t memory, kernel_end, cycles;
	const char *cmdline;
	const struct manifest *manifest;
	uint32_t host_features, guest_features;
	uint64_t net_ring;
};

enum { WALLTIME = 1, PUTS, POLL, BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ, HALT };

static void out(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

static void hypercall(int n, volatile void *arg) { out((uint16_t)(0x500 + n), (uint32_t)(uintptr_t)arg); }

static void say(const char *s)
{
	volatile struct { const char *data; size_t len; } puts = { s, length(s) };
	hypercall(PUTS, &puts);
}

static void quit(int status)
{
	volatile struct { void *cookie; int status; } halt = { 0, status };
	hypercall(HALT, &halt);
	__builtin_trap();
}

static uint64_t ticks(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

/* wait polls and shows how long that took, what was ready, and how much of it. */
static void wait(const struct boot *b, uint64_t nsecs)
{
	volatile struct { uint64_t timeout, ready; int ret; } poll = { nsecs, 99, 99 };
	uint64_t before = ticks();
	hypercall(POLL, &poll);
	say_field("ms", (ticks() - before) / (b->cycles / 1000));
	say_field("ready", poll.ready);
	say_field("ret", (uint64_t)poll.ret);
}

struct transfer { uint64_t handle; void *data; uint64_t len; int ret; };

/* echo sends each frame back to its sender, count of them. */
static void echo(const struct boot *b, uint64_t count)
{
	static uint8_t frame[16384];
	while (count > 0) {
		volatile struct { uint64_t timeout, ready; int ret; } poll = { UINT64_MAX, 0, 0 };
		hypercall(POLL, &poll);
		for (uint64_t handle = NET0; handle < NET0 + NETS && count > 0; handle++) {
			if (!(poll.ready & 1ull << handle))
				continue;
			const struct entry *device = &b->manifest->e[handle];
			volatile struct transfer net = { handle, frame, sizeof frame, 99 };
			hypercall(NET_READ, &net);
			if (net.ret != 0 || net.len < 14)
				quit(104);
			int mine = 1; /* and not what the kernel says on its own */
			for (int i = 0; i < 6; i++)
				mine &= frame[i] == device->u.net.mac[i];
			if (!mine)
				continue;
			for (int i = 0; i < 6; i++) {
				frame[i] = frame[6 + i];
				frame[6 + i] = device->u.net.mac[i];
			}
			hypercall(NET_WRITE, &net);
			if (net.ret != 0)
				quit(105);
			count--;
		}
	}
}

/* The argument of a hypercall as its words, and what it points to. */
static volatile uint64_t words[8];
static uint8_t buffer[4096];

static void fill(uint8_t byte)
{
	for (size_t n = 0; n < sizeof buffer; n++)
		buffer[n] = byte;
}

/*
 * call makes a hypercall with the words that the command line gives, where "b"
 * stands for the address of a buffer, "e" for the end of memory, both
 * with a number added, or makes it with the address "@N" itself.
 */
static void call(const struct boot *b, const char *line)
{
	int nr = (int)number(line), given = 0, result = -1;
	uint32_t arg = (uint32_t)(uintptr_t)words;
	for (line = next(line); *line; line = next(line)) {
		if (*line == '@')
			arg = (uint32_t)number(line + 1);
		else if (*line == '$')
			arg = (uint32_t)(b->memory + number(line + 1)) - 4096;
		else if (*line == 'r')
			result = (int)number(line + 1);
		else if (*line == 'f')
			fill((uint8_t)number(line + 1));
		else if (*line == 'b')
			words[given++] = (uintptr_t)buffer + number(line + 1);
		else if (*line == 'e')
			words[given++] = b->memory - 4096 + number(line + 1);
		else
			words[given++] = number(line);
	}
	out((uint16_t)(0x500 + nr), arg);
	if (result >= 0)
		say_field("ret", (uint32_t)words[result]);
	say_field("byte", buffer[0]);
}

#if CONSTANTS > 0
__attribute__((section(".rodata.large"), used))
static const uint8_t constants[CONSTANTS << 20] = { [(CONSTANTS << 20) - 1] = 77 };
#endif

static void misbehave(const char *how)
{
	volatile char *text = (volatile char *)0x100000;
	if (is(how, "write-text"))
		*text = 0;
	else if (is(how, "write-rodata"))
		*(volatile uint32_t *)&abi.version = 3;
	else if (is(how, "write-text-unprotected")) {
		uint64_t cr0;
		__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
		__asm__ volatile("mov %0, %%cr0" : : "r"(cr0 & ~(1ull << 16)) : "memory");
		*text = 0;
	}
#if CONSTANTS > 0
	else if (is(how, "write-constants"))
		*(volatile uint8_t *)&constants[sizeof constants - 1] = 0;
	else if (is(how, "run-constants"))
		((void (*)(void))(uintptr_t)&constants[sizeof constants / 2])();
#endif
	else if (is(how, "write-boot"))
		*(volatile char *)0x10000 = 1;
	else if (is(how, "run-data")) {
		zero[0] = (char)0xc3;
		((void (*)(void))(uintptr_t)zero)();
	} else if (is(how, "run-stack")) {
		volatile char code[1] = { (char)0xc3 };
		((void (*)(void))(uintptr_t)code)();
	} else if (is(how, "run-rodata"))
		((void (*)(void))(uintptr_t)&abi)();
	else if (is(how, "read-zero"))
		(void)*(volatile char *)0;
	else if (is(how, "read-tables"))
		(void)*(volatile char *)0x2000;
	else if (is(how, "read-behind"))
		(void)*(volatile char *)0x7fff0000;
	else if (is(how, "hlt"))
		__asm__ volatile("hlt");
	else if (is(how, "in"))
		__asm__ volatile("inl %w0, %%eax" : : "d"(0x502) : "eax");
	else if (is(how, "out-byte"))
		__asm__ volatile("outb %%al, %w0" : : "d"(0x502), "a"(0));
	else if (is(how, "port"))
		out(0x80, 0);
	else if (is(how, "reserved"))
		hypercall(0, 0);
	else if (is(how, "kick"))
		out(0x600, 0);
	else if (is(how, "spin"))
		for (;;)
			;
}

__attribute__((used)) static void run(const struct boot *b, uintptr_t stack)
{
	const char *line = b->cmdline, *rest;
	if ((rest = is(line, "hello")))
		say("hello\n"), quit((int)number(rest));
	if ((rest = is(line, "say")))
		say(rest), quit(0);
	if (is(line, "boot")) {
		show_boot(b->memory, b->kernel_end, b->manifest, stack);
		say_field("features", b->host_features | b->guest_features | b->net_ring);
#if CONSTANTS > 0
		say_field("constant", constants[sizeof constants - 1]);
#endif
		quit(0);
	}
	if ((rest = is(line, "wait")))
		say("up\n"), wait(b, number(rest)), quit(0);
	if ((rest = is(line, "echo")))
		say("up\n"), echo(b, number(rest)), quit(0);
	if (is(line, "walltime")) {
		volatile uint64_t nsecs = 0;
		hypercall(WALLTIME, &nsecs);
		say_field("nsecs", nsecs);
		quit(0);
	}
	if ((rest = is(line, "call")))
		call(b, rest), quit(0);
	if ((rest = is(line, "misbehave")))
		say("up\n"), misbehave(rest), quit(0); /* it should not come to this */
	quit(100);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rsi\n"
	"	jmp run\n");
