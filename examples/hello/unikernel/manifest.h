/*
 * The binary formats that a Solo5 image shares with its tender: the two notes,
 * and the manifest of devices, which the tender fills in and hands back.
 */
#ifndef MANIFEST_H
#define MANIFEST_H

#include <stdbool.h>
#include <stdint.h>

enum { TARGET_HVT = 1, TARGET_SPT = 2 };
enum { DEVICE_BLOCK = 1, DEVICE_NET = 2, DEVICE_RESERVED = 1 << 30 };

/* The manifest's index of our only device; 0 is the reserved first entry. */
enum { DEVICE_SERVICE = 1, DEVICE_COUNT };

struct manifest_entry {
	char name[68];
	uint32_t type;
	union {
		struct {
			uint64_t capacity;
			uint16_t block_size;
		} block;
		struct {
			uint8_t mac[6];
			uint16_t mtu;
		} net;
	} u;
	union {
		int32_t host_fd;
		uint64_t pad;
	} backend;
	bool attached;
};

struct manifest {
	uint32_t version;
	uint32_t entries;
	struct manifest_entry entry[DEVICE_COUNT];
};

struct note_header {
	uint32_t name_size;
	uint32_t content_size;
	uint32_t type;
	char name[8];
};

struct abi_note {
	struct note_header header;
	uint32_t target;
	uint32_t version;
	uint32_t reserved[2];
};

struct manifest_note {
	struct note_header header;
	uint32_t pad;
	struct manifest manifest;
};

_Static_assert(sizeof(struct manifest_entry) == 104, "a tender reads entries of 104 bytes");
_Static_assert(sizeof(struct note_header) == 20, "a note's content starts at byte 20");
_Static_assert(sizeof(struct manifest_note) == 32 + 104 * DEVICE_COUNT, "a note has no holes");

/* ABI_NOTE declares the note that says for which tender the image is. */
#define ABI_NOTE(of_target, of_version)                                               \
	__attribute__((section(".note.solo5.abi"), aligned(4), used))                 \
	static const struct abi_note abi_note = {                                     \
		.header = {sizeof "Solo5", 16, 0x31494241, "Solo5"},                  \
		.target = (of_target),                                                \
		.version = (of_version),                                              \
	}

#endif
