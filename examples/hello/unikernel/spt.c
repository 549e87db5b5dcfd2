/*
 * The platform spt: a Linux process under seccomp. The tender has opened
 * everything already; what is left to us is a handful of system calls, and any
 * other ends the process.
 */
#include "lib.h"
#include "manifest.h"
#include "platform.h"

ABI_NOTE(TARGET_SPT, 2);

enum {
	SYS_READ = 0,
	SYS_WRITE = 1,
	SYS_CLOCK_GETTIME = 228,
	SYS_EXIT_GROUP = 231,
	SYS_EPOLL_PWAIT = 281,
	SYS_TIMERFD_SETTIME = 286,
};
enum { EINTR = 4, EAGAIN = 11, CLOCK_MONOTONIC = 1, TFD_TIMER_ABSTIME = 1, ABORTED = 255 };

/* Below this the stack, which grows down from the end of memory, has too little room. */
#define STACK_SIZE (64 << 10)

struct boot_info {
	uint64_t mem_size;
	uint64_t kernel_end;
	const char *command_line;
	const struct manifest *manifest;
	int32_t epoll_fd;
	int32_t timer_fd;
};

struct timespec {
	int64_t sec;
	int64_t nsec;
};

struct epoll_event {
	uint32_t events;
	uint64_t data;
} __attribute__((packed));

static int console_fd = 1, epoll_fd = -1, timer_fd = -1, net_fd = -1;

/* When the timer will fire, or has fired; NEVER when it is not set. */
static uint64_t armed = NEVER;

static long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static long syscall3(long nr, long a, long b, long c)
{
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return ret;
}

void plat_write(const char *text, size_t len)
{
	while (len > 0) {
		long n = syscall3(SYS_WRITE, console_fd, (long)text, (long)len);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return; /* nobody reads the console: that must not stop the service */
		text += n;
		len -= (size_t)n;
	}
}

_Noreturn void plat_exit(int status)
{
	for (;;)
		syscall3(SYS_EXIT_GROUP, status, 0, 0);
}

static _Noreturn void abort_with(const char *why)
{
	plat_write(why, strlen(why));
	plat_exit(ABORTED);
}

uint64_t plat_now(void)
{
	struct timespec t = {0, 0};

	syscall3(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, (long)&t, 0);
	return (uint64_t)t.sec * 1000000000u + (uint64_t)t.nsec;
}

/*
 * set_timer makes the timer fire at the deadline. Under load the next deadline
 * seldom changes, so most waits need no system call for it. Once it has fired,
 * the timer ends every wait until it is set again: we may not read it.
 */
static void set_timer(uint64_t deadline)
{
	struct {
		struct timespec interval, value;
	} spec = {{0, 0}, {0, 0}};

	if (deadline == armed)
		return;
	if (deadline != NEVER) {
		spec.value.sec = (int64_t)(deadline / 1000000000u);
		spec.value.nsec = (int64_t)(deadline % 1000000000u);
		if (deadline == 0)
			spec.value.nsec = 1; /* 0 would disarm it */
	}
	syscall6(SYS_TIMERFD_SETTIME, timer_fd, TFD_TIMER_ABSTIME, (long)&spec, 0, 0, 0);
	armed = deadline;
}

/* Which event ended the wait does not matter: the caller looks at the clock and reads frames. */
void plat_wait(uint64_t deadline)
{
	struct epoll_event event;

	set_timer(deadline);
	syscall6(SYS_EPOLL_PWAIT, epoll_fd, (long)&event, 1, -1, 0, 0);
}

size_t plat_net_read(void *frame, size_t cap)
{
	long n = syscall3(SYS_READ, net_fd, (long)frame, (long)cap);

	if (n >= 0)
		return (size_t)n;
	if (n == -EAGAIN || n == -EINTR)
		return 0;
	/* The tap was taken away. Waiting for it would be a busy loop, as epoll reports it for ever. */
	abort_with("hello: the network device is gone\n");
}

void plat_net_write(const void *frame, size_t len)
{
	syscall3(SYS_WRITE, net_fd, (long)frame, (long)len);
}

/*
 * _start is entered with the stack as a call would leave it, so it can be
 * plain C.
 */
_Noreturn void _start(const struct boot_info *info)
{
	const struct manifest_entry *service = &info->manifest->entry[DEVICE_SERVICE];
	struct plat_net net;

	if (info->mem_size - info->kernel_end < STACK_SIZE)
		abort_with("hello: too little memory, give it 8 MB\n");
	if (info->manifest->entries != DEVICE_COUNT || !service->attached)
		abort_with("hello: the network device \"service\" is not attached\n");
	epoll_fd = info->epoll_fd;
	timer_fd = info->timer_fd;
	net_fd = service->backend.host_fd;
	memcpy(net.mac, service->u.net.mac, sizeof net.mac);
	net.mtu = service->u.net.mtu;
	hello_main(info->command_line, &net);
}
