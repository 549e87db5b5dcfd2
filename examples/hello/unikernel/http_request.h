/* Reading an HTTP request's head. */
#ifndef HTTP_REQUEST_H
#define HTTP_REQUEST_H

#include "lib.h"

struct request {
	const char *end; /* of its head, where the body starts */
	uint64_t body_len;
	struct slice method, path, query;
	bool close; /* after the answer, by the request's version and its Connection */
	bool keep_alive; /* is to be confirmed, as it is not what the version implies */
};

/* What is wrong with a request is the status to answer it with. */
enum { REQUEST_OK = 0, REQUEST_INCOMPLETE = -1 };

/* request_read reads the request that data starts with: REQUEST_OK, REQUEST_INCOMPLETE or a status. */
int request_read(struct slice data, struct request *request);

#endif
