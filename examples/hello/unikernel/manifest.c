/* The parts of the image that are the same for every target. */
#include "manifest.h"

/* A host's own loader must not run the image as if it were a program. */
__attribute__((section(".interp"), used))
static const char interpreter[] = "/nonexistent/solo5/";

__attribute__((section(".note.solo5.manifest"), aligned(8), used))
static const struct manifest_note manifest_note = {
	.header = {sizeof "Solo5", sizeof(struct manifest_note) - sizeof(struct note_header), 0x3154464d, "Solo5"},
	.manifest = {
		.version = 1,
		.entries = DEVICE_COUNT,
		.entry = {
			[0] = {.type = DEVICE_RESERVED},
			[DEVICE_SERVICE] = {.name = "service", .type = DEVICE_NET},
		},
	},
};
