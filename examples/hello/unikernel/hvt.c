/*
 * The platform hvt: a virtual machine of one processor without interrupts. All
 * that it has of the world is asked of its tender, by a write to a port with
 * the address of the question.
 */
#include "lib.h"
#include "manifest.h"
#include "platform.h"

ABI_NOTE(TARGET_HVT, 2);

enum { CALL_PUTS = 2, CALL_POLL = 3, CALL_NET_WRITE = 6, CALL_NET_READ = 7, CALL_HALT = 8 };
enum { CALL_PORT = 0x500, RESULT_OK = 0, ABORTED = 255 };

/* Below this the stack, which grows down from the end of memory, has too little room. */
#define STACK_SIZE (64 << 10)

struct boot_info {
	uint64_t mem_size;
	uint64_t kernel_end;
	uint64_t cycles_per_second;
	const char *command_line;
	const struct manifest *manifest;
};

/* What is asked of a network device. */
struct transfer {
	uint64_t handle;
	const void *data;
	uint64_t len;
	int result;
};

/* Nanoseconds in a cycle of the processor's clock, times 2^32. */
static uint64_t cycle;

/* The tender takes and leaves all in memory, and no register changes. */
static void call(int nr, volatile void *arg)
{
	__asm__ volatile("outl %0, %1" : : "a"((uint32_t)(uintptr_t)arg), "d"((uint16_t)(CALL_PORT + nr)) : "memory");
}

void plat_write(const char *text, size_t len)
{
	volatile struct {
		const char *text;
		uint64_t len;
	} puts = {text, len};

	call(CALL_PUTS, &puts);
}

_Noreturn void plat_exit(int status)
{
	volatile struct {
		void *cookie;
		int status;
	} halt = {NULL, status};

	for (;;)
		call(CALL_HALT, &halt);
}

static _Noreturn void abort_with(const char *why)
{
	plat_write(why, strlen(why));
	plat_exit(ABORTED);
}

uint64_t plat_now(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)((unsigned __int128)((uint64_t)high << 32 | low) * cycle >> 32);
}

/* Which device ended the wait does not matter: there is only one. */
void plat_wait(uint64_t deadline)
{
	volatile struct {
		uint64_t timeout, ready;
		int result;
	} poll = {NEVER, 0, 0};

	if (deadline != NEVER) {
		uint64_t at = plat_now();
		poll.timeout = deadline > at ? deadline - at : 0;
	}
	call(CALL_POLL, &poll);
}

size_t plat_net_read(void *frame, size_t cap)
{
	volatile struct transfer read = {DEVICE_SERVICE, frame, cap, 0};

	/* A tap that was taken away is the tender's to notice: it ends us. */
	call(CALL_NET_READ, &read);
	return read.result == RESULT_OK ? read.len : 0;
}

void plat_net_write(const void *frame, size_t len)
{
	volatile struct transfer write = {DEVICE_SERVICE, frame, len, 0};

	call(CALL_NET_WRITE, &write);
}

/*
 * _start is entered with the stack as a call would leave it, so it can be
 * plain C.
 */
_Noreturn void _start(const struct boot_info *info)
{
	const struct manifest_entry *service = &info->manifest->entry[DEVICE_SERVICE];
	struct plat_net net;

	cycle = (UINT64_C(1000000000) << 32) / info->cycles_per_second;
	if (info->mem_size - info->kernel_end < STACK_SIZE)
		abort_with("hello: too little memory, give it 8 MB\n");
	if (info->manifest->entries != DEVICE_COUNT || !service->attached)
		abort_with("hello: the network device \"service\" is not attached\n");
	memcpy(net.mac, service->u.net.mac, sizeof net.mac);
	net.mtu = service->u.net.mtu;
	hello_main(info->command_line, &net);
}
