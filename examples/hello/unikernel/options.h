/* The command line. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "lib.h"

/* The longest --hello, so that an answer always fits into a connection's send buffer. */
enum { HELLO_MAX = 1024 };

struct options {
	uint32_t ipv4;
	uint8_t prefix_len;
	uint32_t gateway; /* 0: none */
	uint16_t port;
	struct slice hello;
	bool unhealthy;
};

/*
 * options_parse reads the command line: arguments stand between spaces, "..."
 * keeps spaces in one, a backslash takes the next character as it is. On an
 * error it returns false and has written one sentence to why. The options keep
 * pointing into a static copy of the command line.
 */
bool options_parse(const char *command_line, struct options *options, struct text *why);

#endif
