/*
 * hello: a unikernel that answers ping, UDP and HTTP. One loop turns frames
 * and timers into answers; it sleeps in the platform when there is neither.
 */
#include "http.h"
#include "net.h"
#include "options.h"
#include "tcp.h"
#include "timer.h"

enum { EXIT_USAGE = 64, BATCH = 64 };

uint64_t now;

static void print(const struct text *t)
{
	plat_write(t->at, t->len);
}

static void read_options(const char *command_line, struct options *options)
{
	char buffer[256];
	struct text line = {buffer, sizeof buffer - 1, 0};

	text_str(&line, "hello: ");
	if (options_parse(command_line, options, &line))
		return;
	line.cap++;
	text_str(&line, "\n");
	print(&line);
	plat_exit(EXIT_USAGE);
}

static void start(const struct options *o, const struct plat_net *device)
{
	now = plat_now();
	memcpy(net.mac, device->mac, sizeof net.mac);
	net.mtu = device->mtu < MTU_MAX ? device->mtu : MTU_MAX;
	net.ip = o->ipv4;
	net.mask = ~(o->prefix_len == 32 ? 0 : UINT32_MAX >> o->prefix_len);
	net.gateway = o->gateway;
	net.udp_port = o->port;
	http_start(o->hello, o->unhealthy);
	tcp_start(o->port);
	arp_start();
}

static void announce(const struct options *o)
{
	char buffer[HELLO_MAX + 128];
	struct text line = {buffer, sizeof buffer, 0};

	text_str(&line, "hello: serving ");
	text_add(&line, o->hello);
	text_str(&line, " at ");
	text_ipv4(&line, o->ipv4);
	text_str(&line, "/");
	text_number(&line, o->prefix_len);
	text_str(&line, " port ");
	text_number(&line, o->port);
	text_str(&line, o->unhealthy ? ", unhealthy\n" : "\n");
	print(&line);
}

_Noreturn void hello_main(const char *command_line, const struct plat_net *device)
{
	static uint8_t frame[FRAME_MAX];
	struct options options;

	read_options(command_line, &options);
	start(&options, device);
	announce(&options);
	for (;;) {
		plat_wait(timer_next());
		now = plat_now();
		/* In batches, so that a flood cannot keep the timers from running. */
		for (int i = 0; i < BATCH; i++) {
			size_t len = plat_net_read(frame, sizeof frame);
			if (len == 0)
				break;
			eth_input(frame, len);
		}
		timer_run();
	}
}
