// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that is given to the kernel: two pages between two that cannot be touched, mapped a
 * second time for reading only. What the kernel writes where it should not is seen.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "fuzz.h"

static char *map(int fd, int protection)
{
	char *at = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	want(at != MAP_FAILED);
	at = mmap(at + PAGE, ROOM, protection, MAP_SHARED | MAP_FIXED, fd, 0);
	want(at != MAP_FAILED);
	return at;
}

void room_make(struct room *room)
{
	int fd = memfd_create("room", MFD_CLOEXEC);

	want(fd >= 0 && !ftruncate(fd, ROOM));
	room->at = map(fd, PROT_READ | PROT_WRITE);
	room->read_only = map(fd, PROT_READ) - room->at;
	close(fd);
	room_clear(room);
}

void room_clear(struct room *room)
{
	memset(room->at, FILL, ROOM);
}

/* A place for so many bytes: at the end, at the start, across the pages, or anywhere. */
char *room_place(struct room *room, struct rng *rng, size_t size)
{
	switch (below(rng, 4)) {
	case 0: return room->at;
	case 1: return room->at + (size > PAGE ? 0 : PAGE - size / 2);
	case 2: return room->at + below(rng, ROOM - size + 1);
	default: return room->at + ROOM - size;
	}
}

void room_remember(struct room *room)
{
	memcpy(room->before, room->at, ROOM);
}

int room_has(const struct room *room, uintptr_t at, size_t size)
{
	uintptr_t start = (uintptr_t)room->at;

	return at >= start && at <= start + ROOM && size <= start + ROOM - at;
}

static int is_allowed(uintptr_t at, const struct written *allowed, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		if (at - allowed[i].at < allowed[i].size)
			return 1;
	return 0;
}

/* The offset of a byte that was changed since room_remember() and should not have been, or -1. */
int room_changed(struct room *room, const struct written *allowed, unsigned int count)
{
	for (unsigned int piece = 0; piece < ROOM; piece += 256) {
		if (!memcmp(room->at + piece, room->before + piece, 256))
			continue;
		for (unsigned int i = piece; i < piece + 256; i++)
			if (room->at[i] != room->before[i] &&
			    !is_allowed((uintptr_t)room->at + i, allowed, count))
				return i;
	}
	return -1;
}

/* An address at which there are not even five bytes. */
uintptr_t hostile_address(struct rng *rng, const struct room *room)
{
	static const uint64_t values[] = {
		0, 1, 7, PAGE - 1, 0xfffffff8, 0xfffff000, 0x00007ffffffff000, 0x00007ffffffffffe,
		0x0000800000000000, 0xffff888000000000, 0xffffffff81000000, 0xfffffffffffffff0, ~0ull,
	};
	unsigned int i = below(rng, sizeof(values) / sizeof(*values) + 3);

	switch (i) {
	case 0: return (uintptr_t)room->at + ROOM - below(rng, 5);
	case 1: return (uintptr_t)room->at - PAGE + below(rng, PAGE - 1);
	case 2: return (uintptr_t)room->at + ROOM + below(rng, PAGE - 1);
	default:
		/* What is cut off to 32 bits may be somewhere. */
		if (values[i - 3] > UINTPTR_MAX)
			return 0;
		return values[i - 3];
	}
}
