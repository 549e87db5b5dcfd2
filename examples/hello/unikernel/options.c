#include "options.h"

enum { LINE_MAX = 8192, ARGUMENTS_MAX = 32 };

/* Which options were given, to refuse one that is given twice. */
enum {
	GIVEN_IPV4 = 1 << 0,
	GIVEN_GATEWAY = 1 << 1,
	GIVEN_PORT = 1 << 2,
	GIVEN_HELLO = 1 << 3,
	GIVEN_UNHEALTHY = 1 << 4,
};

static bool fail(struct text *why, const char *sentence, struct slice culprit)
{
	text_str(why, sentence);
	text_str(why, " \"");
	text_add(why, culprit);
	text_str(why, "\"");
	return false;
}

/* split cuts the command line into arguments; it returns -1 with a reason when it cannot. */
static int split(const char *line, struct slice *arguments, struct text *why)
{
	static char copy[LINE_MAX];
	char *to = copy, *end = copy + sizeof copy;
	int count = 0;

	for (;;) {
		while (*line == ' ')
			line++;
		if (*line == '\0')
			return count;
		char *start = to;
		bool quoted = false;
		for (; *line != '\0' && (quoted || *line != ' ') && to < end; line++) {
			if (*line == '"') {
				quoted = !quoted;
				continue;
			}
			if (*line == '\\' && line[1] != '\0')
				line++;
			*to++ = *line;
		}
		struct slice argument = {start, (size_t)(to - start)};
		if (quoted) {
			fail(why, "a quotation mark is never closed in", argument);
			return -1;
		}
		if (count == ARGUMENTS_MAX || to == end) {
			fail(why, "the command line is too long at", argument);
			return -1;
		}
		arguments[count++] = argument;
	}
}

static bool parse_ipv4(struct slice s, uint32_t *address)
{
	uint32_t result = 0;

	for (int i = 0; i < 4; i++) {
		struct slice part;
		uint64_t octet;
		if (slice_cut(s, '.', &part, &s) != (i < 3) || !slice_number(part, 255, &octet))
			return false;
		result = result << 8 | (uint32_t)octet;
	}
	*address = result;
	uint32_t first = result >> 24;
	return first != 0 && first != 127 && first < 224;
}

/* parse_interface reads A/L; an address that names the network or all its hosts cannot be ours. */
static bool parse_interface(struct slice s, uint32_t *address, uint8_t *prefix_len)
{
	struct slice host, len;
	uint64_t bits;

	if (!slice_cut(s, '/', &host, &len) || !parse_ipv4(host, address))
		return false;
	if (!slice_number(len, 32, &bits) || bits == 0)
		return false;
	*prefix_len = (uint8_t)bits;
	uint32_t host_mask = bits == 32 ? 0 : UINT32_MAX >> bits;
	uint32_t host_part = *address & host_mask;
	return bits >= 31 || (host_part != 0 && host_part != host_mask);
}

/* set takes one argument; it returns the bit of the option that it was, or 0 with a reason. */
static unsigned set(struct options *o, struct slice argument, struct text *why)
{
	struct slice name, value;
	bool has_value = slice_cut(argument, '=', &name, &value);
	uint64_t number;

	if (slice_is(argument, "--unhealthy")) {
		o->unhealthy = true;
		return GIVEN_UNHEALTHY;
	}
	if (slice_is(name, "--ipv4") && has_value) {
		if (parse_interface(value, &o->ipv4, &o->prefix_len))
			return GIVEN_IPV4;
		fail(why, "--ipv4 wants a host's address and prefix length like 10.0.0.7/24, not", value);
	} else if (slice_is(name, "--ipv4-gateway") && has_value) {
		if (parse_ipv4(value, &o->gateway))
			return GIVEN_GATEWAY;
		fail(why, "--ipv4-gateway wants an address like 10.0.0.1, not", value);
	} else if (slice_is(name, "--port") && has_value) {
		if (slice_number(value, 65535, &number) && number > 0) {
			o->port = (uint16_t)number;
			return GIVEN_PORT;
		}
		fail(why, "--port wants a number from 1 to 65535, not", value);
	} else if (slice_is(name, "--hello") && has_value) {
		if (value.len <= HELLO_MAX) {
			o->hello = value;
			return GIVEN_HELLO;
		}
		text_str(why, "--hello wants at most 1024 bytes");
	} else {
		fail(why, argument.len > 0 && argument.at[0] == '-' ? "unknown option" : "unexpected argument", argument);
	}
	return 0;
}

bool options_parse(const char *command_line, struct options *options, struct text *why)
{
	struct slice arguments[ARGUMENTS_MAX];
	unsigned given = 0;

	*options = (struct options){.port = 80, .hello = {"hello", 5}};
	int count = split(command_line, arguments, why);
	if (count < 0)
		return false;
	for (int i = 0; i < count; i++) {
		unsigned option = set(options, arguments[i], why);
		if (option == 0)
			return false;
		if (given & option)
			return fail(why, "given twice:", arguments[i]);
		given |= option;
	}
	if (!(given & GIVEN_IPV4)) {
		text_str(why, "--ipv4=ADDRESS/LENGTH is missing");
		return false;
	}
	return true;
}
