/* SPDX-License-Identifier: GPL-2.0 */
/* What the files of the fuzzer know of each other. blksnap-fuzz.c tells the story. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/blk_snap.h>
#include <linux/blksnap.h>

#define PAGE 4096
#define SECTOR 512
#define BLOCK 4096
#define MAX_DEVICES 8
#define MAX_IDS 3
#define COMMANDS blk_snap_ioctl_end
#define MAX_ERRNO 134
/* The commands of the interface of 2025, and a file that they may give as storage. */
#define SECOND 16
#define SECOND_FILE "/dev/shm/fuzz-storage"

/* --- Random numbers: the same with the same seed. */
struct rng { uint64_t state; };
uint64_t next(struct rng *rng);
static inline unsigned int below(struct rng *rng, unsigned int limit)
{
	return (next(rng) >> 32) % limit;
}
static inline int one_in(struct rng *rng, unsigned int n) { return !below(rng, n); }

/* --- A device that is captured: its blocks before `stamped` are written with stamps by the load,
 * and those behind may be difference storage.
 */
struct device {
	const char *path;
	int fd;
	struct blk_snap_dev_t id;
	uint64_t sectors;
	uint32_t stamped;	/* blocks */
	uint32_t *stamps;	/* of each block, what was written last */
	uint32_t last;
};

/* --- What all processes share. */
struct shared {
	atomic_int stop, failed;
	atomic_int calm;	/* this phase: see --calm */
	atomic_ulong commands, io;
	atomic_ulong outcome[COMMANDS + 1][MAX_ERRNO];
	atomic_ulong second[SECOND][MAX_ERRNO];
	struct blk_snap_uuid ids[MAX_IDS];	/* of some snapshots; torn if two threads meet */
	struct blksnap_uuid second_ids[MAX_IDS];
	char page[2 * PAGE] __attribute__((aligned(PAGE)));	/* all threads scribble on it */
};

extern struct shared *shared;
extern struct device devices[MAX_DEVICES];
extern unsigned int device_count;
extern struct blk_snap_dev_t storage;
extern uint64_t storage_sectors;
extern const char *storage_path;
extern unsigned int image_major;

/* Says what is wrong, for all processes, and ends this one. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#define want(expr) do { if (!(expr)) die("%s:%d: not so: %s", __FILE__, __LINE__, #expr); } while (0)

/* --- room.c: memory that is given to the kernel. */
struct room {
	char *at;		/* ROOM bytes between pages that cannot be touched */
	ptrdiff_t read_only;	/* add it, and the address cannot be written */
	char before[2 * PAGE];
};
#define ROOM (2 * PAGE)
#define FILL 0xa5

struct written { uintptr_t at; size_t size; };
void room_make(struct room *room);
void room_clear(struct room *room);
char *room_place(struct room *room, struct rng *rng, size_t size);
void room_remember(struct room *room);
int room_changed(struct room *room, const struct written *allowed, unsigned int count);
int room_has(const struct room *room, uintptr_t at, size_t size);
uintptr_t hostile_address(struct rng *rng, const struct room *room);

/* --- commands.c: one command, valid or not, and what has to be true of its outcome. */
struct worker {
	struct rng rng;
	struct room args, array, more;
	int fds[4], second[2], wrapped;
	uint64_t made;		/* commands */
	const char *name;
};
void fuzz_one(struct worker *worker);

/* --- second.c: the same for the interface of 2025. */
void fuzz_second(struct worker *worker);
void remove_second(int control);
void report_second(void);

/* --- load.c */
void load_open(struct device *device, const char *path);
void load_write(struct device *device, struct rng *rng);
void load_check(struct device *device, int fd, const uint32_t *stamps, const char *what);
void image_io(struct rng *rng);

#endif
