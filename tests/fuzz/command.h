/* SPDX-License-Identifier: GPL-2.0 */
/* One command: made by commands.c, judged by answers.c. */
#ifndef COMMAND_H
#define COMMAND_H

#include "fuzz.h"

union args {
	struct blk_snap_version version;
	struct blk_snap_tracker_remove remove;
	struct blk_snap_tracker_collect trackers;
	struct blk_snap_tracker_read_cbt_bitmap map;
	struct blk_snap_tracker_mark_dirty_blocks mark;
	struct blk_snap_snapshot_create create;
	struct blk_snap_snapshot_destroy destroy;
	struct blk_snap_snapshot_append_storage append;
	struct blk_snap_snapshot_take take;
	struct blk_snap_snapshot_collect snapshots;
	struct blk_snap_snapshot_collect_images images;
	struct blk_snap_snapshot_event event;
	char bytes[PAGE];
};

/* What there is to a kind of command. */
struct shape {
	unsigned int word, size;
	/* Of those with an array: where its length and its address are, and the size of an item. */
	unsigned int count_at, array_at, item;
	int fills;		/* the array is for the answer */
	unsigned int weight;	/* how often; small where it takes long on a debug kernel */
	unsigned char errors[8];/* beside EFAULT */
};

enum { TRACKER_COLLECT = 2, READ_CBT_MAP = 3, CREATE = 5, APPEND = 7, TAKE = 8, COLLECT = 9, IMAGES = 10,
       WAIT = 11 };

struct call {
	unsigned int nr, word;
	const struct shape *shape;
	union args args;
	uint32_t count;
	uintptr_t address, array;
	int hostile;		/* EFAULT may come of it */
	int cut;		/* EFAULT must come of it */
	int unknown;		/* ENOTTY must */
	int common;		/* others change the arguments meanwhile */
};

const struct device *device_of(struct blk_snap_dev_t id);
/* Dies unless the outcome is one that may come of the command, whose arguments were at `placed`. */
void judge(struct worker *worker, const struct call *call, const char *placed, long result, int error);

#endif
