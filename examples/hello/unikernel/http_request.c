#include "http_request.h"

enum { BAD_REQUEST = 400, NOT_IMPLEMENTED = 501, VERSION_NOT_SUPPORTED = 505 };

/* token_char says whether c may stand in a method or a field name (RFC 9110 §5.6.2). */
static bool token_char(char c)
{
	if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
		return true;
	for (const char *p = "!#$%&'*+-.^_`|~"; *p != '\0'; p++)
		if (c == *p)
			return true;
	return false;
}

static bool is_token(struct slice s)
{
	for (size_t i = 0; i < s.len; i++)
		if (!token_char(s.at[i]))
			return false;
	return s.len > 0;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t';
}

static struct slice trim(struct slice s)
{
	while (s.len > 0 && is_space(s.at[0])) {
		s.at++;
		s.len--;
	}
	while (s.len > 0 && is_space(s.at[s.len - 1]))
		s.len--;
	return s;
}

/* next_line cuts a line off; it may end in a bare LF (RFC 9112 §2.2). */
static bool next_line(struct slice *data, struct slice *line)
{
	struct slice rest;

	if (!slice_cut(*data, '\n', line, &rest))
		return false;
	*data = rest;
	if (line->len > 0 && line->at[line->len - 1] == '\r')
		line->len--;
	return true;
}

/* complete says whether the empty line at the end of a head is there. */
static bool complete(struct slice data)
{
	struct slice line;

	while (next_line(&data, &line))
		if (line.len == 0)
			return true;
	return false;
}

/* read_target takes /path?query, and the same behind a scheme and a host, as sent to proxies. */
static bool read_target(struct slice target, struct request *r)
{
	struct slice rest = target, authority;

	if (slice_prefix(&rest, "http://") || slice_prefix(&rest, "https://")) {
		slice_cut(rest, '/', &authority, &target);
		target.at--;
		target.len++;
		if (authority.len == rest.len)
			target = (struct slice){"/", 1};
	}
	for (size_t i = 0; i < target.len; i++)
		if (target.at[i] <= ' ' || target.at[i] > '~')
			return false;
	slice_cut(target, '?', &r->path, &r->query);
	return target.len > 0 && (target.at[0] == '/' || slice_is(target, "*"));
}

static int read_request_line(struct slice line, struct request *r, bool *http11)
{
	struct slice target, version;

	if (!slice_cut(line, ' ', &r->method, &line) || !is_token(r->method))
		return BAD_REQUEST;
	if (!slice_cut(line, ' ', &target, &version) || !read_target(target, r))
		return BAD_REQUEST;
	if (!slice_prefix(&version, "HTTP/") || version.len != 3 || version.at[1] != '.')
		return BAD_REQUEST;
	if (version.at[0] != '1')
		return version.at[0] >= '0' && version.at[0] <= '9' ? VERSION_NOT_SUPPORTED : BAD_REQUEST;
	if (version.at[2] < '0' || version.at[2] > '9')
		return BAD_REQUEST;
	*http11 = version.at[2] != '0';
	return REQUEST_OK;
}

/* What a head's fields say. */
struct fields {
	int hosts;
	bool close, keep_alive, has_length;
	uint64_t length;
};

static void read_connection(struct slice value, struct fields *f)
{
	struct slice option;
	bool more;

	do {
		more = slice_cut(value, ',', &option, &value);
		f->close |= slice_is_nocase(trim(option), "close");
		f->keep_alive |= slice_is_nocase(trim(option), "keep-alive");
	} while (more);
}

static int read_field(struct slice line, struct fields *f)
{
	struct slice name, value;
	uint64_t length;

	/* A name with a space before its colon, or a folded line, hides requests from others: refused. */
	if (!slice_cut(line, ':', &name, &value) || !is_token(name))
		return BAD_REQUEST;
	value = trim(value);
	if (slice_is_nocase(name, "host")) {
		f->hosts++;
	} else if (slice_is_nocase(name, "connection")) {
		read_connection(value, f);
	} else if (slice_is_nocase(name, "content-length")) {
		if (!slice_number(value, UINT64_MAX, &length) || (f->has_length && length != f->length))
			return BAD_REQUEST;
		f->has_length = true;
		f->length = length;
	} else if (slice_is_nocase(name, "transfer-encoding")) {
		return NOT_IMPLEMENTED;
	}
	return REQUEST_OK;
}

int request_read(struct slice data, struct request *r)
{
	struct slice line, rest = data;
	struct fields fields = {0};
	bool http11 = false;
	int status;

	*r = (struct request){0};
	/* Empty lines before a request are skipped, as some clients send one after a body. */
	do {
		data = rest;
		if (!next_line(&rest, &line))
			return REQUEST_INCOMPLETE;
	} while (line.len == 0);
	if (!complete(data))
		return REQUEST_INCOMPLETE;

	status = read_request_line(line, r, &http11);
	while (status == REQUEST_OK && next_line(&rest, &line) && line.len > 0)
		status = read_field(line, &fields);
	if (status == REQUEST_OK && (fields.hosts > 1 || (http11 && fields.hosts == 0)))
		status = BAD_REQUEST;
	if (status != REQUEST_OK)
		return status;
	r->end = rest.at;
	r->body_len = fields.length;
	r->close = fields.close || (!http11 && !fields.keep_alive);
	r->keep_alive = !http11 && !r->close;
	return REQUEST_OK;
}
