#include "http.h"
#include "conn.h"
#include "http_request.h"
#include "options.h"
#include "timer.h"

/* An answer is written only when all of it has room, so none is ever left half done. */
enum { HEAD_MAX = 256, ANSWER_MAX = HEAD_MAX + HELLO_MAX + 1 };

_Static_assert((int)ANSWER_MAX <= (int)SEND_SIZE, "an answer fits into a send buffer");

#define SLEEP_MOST 3600000 /* ms */
#define EXIT_AFTER (500 * MILLISECOND)

static struct slice hello;
static bool unhealthy;

/* Who asked for the end, and with which status. */
static const struct conn *exit_conn;
static uint8_t exit_status;

void http_start(struct slice text, bool is_unhealthy)
{
	hello = text;
	unhealthy = is_unhealthy;
}

static const char *reason(int status)
{
	switch (status) {
	case 200:
		return "OK";
	case 400:
		return "Bad Request";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 431:
		return "Request Header Fields Too Large";
	case 501:
		return "Not Implemented";
	case 503:
		return "Service Unavailable";
	default:
		return "HTTP Version Not Supported";
	}
}

/* answer writes a whole answer, and closes when the request wants that. */
static void answer(struct conn *c, const struct request *r, int status, struct slice body)
{
	char buffer[ANSWER_MAX];
	struct text t = {buffer, sizeof buffer, 0};

	text_str(&t, "HTTP/1.1 ");
	text_number(&t, (uint64_t)status);
	text_str(&t, " ");
	text_str(&t, reason(status));
	text_str(&t, "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ");
	text_number(&t, body.len + 1);
	if (r->close)
		text_str(&t, "\r\nConnection: close");
	else if (r->keep_alive)
		text_str(&t, "\r\nConnection: keep-alive");
	if (status == 405)
		text_str(&t, "\r\nAllow: GET, HEAD");
	text_str(&t, "\r\n\r\n");
	if (!slice_is(r->method, "HEAD")) {
		text_add(&t, body);
		text_str(&t, "\n");
	}
	tcp_write(c, (struct slice){t.at, t.len});
	if (r->close)
		tcp_close(c);
}

/* answer_status answers with nothing but the status's own words. */
static void answer_status(struct conn *c, const struct request *r, int status)
{
	answer(c, r, status, (struct slice){reason(status), strlen(reason(status))});
}

static void answer_number(struct conn *c, const struct request *r, const char *words, uint64_t n, const char *unit)
{
	char buffer[64];
	struct text t = {buffer, sizeof buffer, 0};

	text_str(&t, words);
	text_number(&t, n);
	text_str(&t, unit);
	answer(c, r, 200, (struct slice){t.at, t.len});
}

/* parameter finds name=NUMBER in a query. */
static bool parameter(struct slice query, const char *name, uint64_t max, uint64_t *number)
{
	struct slice pair, key, value;
	bool more;

	do {
		more = slice_cut(query, '&', &pair, &query);
		slice_cut(pair, '=', &key, &value);
		if (slice_is(key, name))
			return slice_number(value, max, number);
	} while (more);
	return false;
}

static void ask_exit(struct conn *c, struct request *r)
{
	uint64_t code;

	if (!parameter(r->query, "code", 255, &code)) {
		answer_status(c, r, 400);
		return;
	}
	r->close = true;
	answer_number(c, r, "exiting with status ", code, "");
	if (exit_conn != NULL || slice_is(r->method, "HEAD"))
		return;
	/* The answer is to arrive first: http_closed says that it has. */
	exit_conn = c;
	exit_status = (uint8_t)code;
	timer_set(TIMER_EXIT, now + EXIT_AFTER);
}

void http_exit(void)
{
	plat_exit(exit_status);
}

void http_closed(const struct conn *c)
{
	if (c == exit_conn)
		http_exit();
}

/* handle answers a request; it returns false when the answer has to wait for http_timer. */
static bool handle(struct conn *c, struct request *r, bool slept)
{
	uint64_t ms;

	if (unhealthy) {
		answer_status(c, r, 503);
	} else if (!slice_is(r->method, "GET") && !slice_is(r->method, "HEAD")) {
		answer_status(c, r, 405);
	} else if (slice_is(r->path, "/")) {
		answer(c, r, 200, hello);
	} else if (slice_is(r->path, "/exit")) {
		ask_exit(c, r);
	} else if (!slice_is(r->path, "/sleep")) {
		answer_status(c, r, 404);
	} else if (!parameter(r->query, "ms", SLEEP_MOST, &ms)) {
		answer_status(c, r, 400);
	} else if (slept) {
		answer_number(c, r, "slept ", ms, " ms");
	} else {
		c->http.sleeping = true;
		timer_set(TIMER_HTTP + conn_id(c), now + ms * MILLISECOND);
		return false;
	}
	return true;
}

static void skip_body(struct conn *c)
{
	size_t n = tcp_received(c).len;

	if (n > c->http.body_left)
		n = (size_t)c->http.body_left;
	c->http.body_left -= n;
	tcp_consume(c, n);
}

/* step does one thing with what was received; it returns false when nothing more can be done now. */
static bool step(struct conn *c, bool slept)
{
	struct request r;

	skip_body(c);
	if (c->http.body_left > 0 || tcp_room(c) < ANSWER_MAX)
		return false;
	struct slice received = tcp_received(c);
	int status = request_read(received, &r);
	if (status == REQUEST_INCOMPLETE) {
		if (received.len < RECEIVE_SIZE)
			return false;
		status = 431;
	}
	if (status != REQUEST_OK) {
		/* Where the next request starts is anybody's guess, so there is none. */
		r = (struct request){.close = true};
		answer_status(c, &r, status);
		return false;
	}
	if (!handle(c, &r, slept) || c->closing)
		return false;
	c->http.body_left = r.body_len;
	tcp_consume(c, (size_t)(r.end - received.at));
	return true;
}

/* run answers all that can be answered now; slept says that the first request has had its sleep. */
static void run(struct conn *c, bool slept)
{
	while (!c->http.sleeping && !c->closing && step(c, slept))
		slept = false;
	if (c->peer_fin && !c->closing && !c->http.sleeping && tcp_room(c) >= ANSWER_MAX)
		tcp_close(c); /* nobody will complete what is left */
}

void http_input(struct conn *c)
{
	run(c, false);
}

void http_timer(unsigned id)
{
	struct conn *c = conn_at(id);

	c->http.sleeping = false;
	run(c, true);
	tcp_flush(c);
}
