/*
 * What the unikernel needs of the machine it runs on: spt.c and hvt.c have it,
 * one for each target.
 */
#ifndef PLATFORM_H
#define PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An instant that never comes. */
#define NEVER UINT64_MAX

/* The one network device, as the tender describes it. */
struct plat_net {
	uint8_t mac[6];
	uint16_t mtu;
};

/* hello_main is what a platform calls once it has set itself up. */
_Noreturn void hello_main(const char *command_line, const struct plat_net *net);

/* plat_write writes to the console. */
void plat_write(const char *text, size_t len);

/* plat_now is the monotonic time in nanoseconds. */
uint64_t plat_now(void);

/* plat_wait blocks until a frame may be read, or until the deadline. */
void plat_wait(uint64_t deadline);

/* plat_net_read reads one frame; 0 means that there is none. */
size_t plat_net_read(void *frame, size_t cap);

/* plat_net_write sends one frame, or loses it: nobody above relies on it. */
void plat_net_write(const void *frame, size_t len);

/* plat_exit ends the unikernel. */
_Noreturn void plat_exit(int status);

#endif
