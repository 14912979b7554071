/* SPDX-License-Identifier: GPL-2.0 */
/* What the block layer calls: see blk-filter-tree.c. */
#ifndef _BLK_FILTER_TREE_H
#define _BLK_FILTER_TREE_H

#include <linux/jump_label_ratelimit.h>
#include "blk-filter.h"

#ifdef CONFIG_BLK_FILTER
extern struct static_key_false_deferred blk_filter_enabled;
extern struct device_attribute dev_attr_filters;
extern struct device_attribute dev_attr_filter;

void blk_filter_del_disk(struct gendisk *disk);
void blk_filter_del_part(struct block_device *part);
void blk_filter_release_disk(struct gendisk *disk);

/* holder.c */
#ifdef CONFIG_BLOCK_HOLDER_DEPRECATED
bool bd_disk_holds(struct gendisk *disk, struct block_device *slave);
#else
static inline bool bd_disk_holds(struct gendisk *disk,
				 struct block_device *slave)
{
	return false;
}
#endif

/*
 * Show @bio to the filters of its disk.  Called with the queue entered; returns
 * true if a filter took the bio, which must then not be touched any more.
 */
static inline bool blk_filter_bio(struct bio *bio)
{
	if (!static_branch_unlikely(&blk_filter_enabled.key))
		return false;
	/*
	 * Whoever entered the queue after an unfreeze has to see what was
	 * changed while it was frozen: the flag, the list of filters, and what
	 * a filter changed.  As long as q_usage_counter counts per processor,
	 * getting a reference is a load and a branch.  Pairs with the release
	 * in __percpu_ref_switch_to_percpu().
	 */
	smp_acquire__after_ctrl_dep();
	return bdev_test_flag(bio->bi_bdev, BD_FILTERED) &&
	       __blk_filter_bio(bio->bi_bdev->bd_disk->filters, bio);
}

/*
 * Called where a bio ends.  A counted write has the completion of its submitter
 * after this: bio_endio() walks a chain of bios by that, which would recurse, once
 * for each bio, if a completion of ours called it.
 */
static inline void blk_filter_bio_endio(struct bio *bio)
{
	while (unlikely(bio->bi_end_io == blk_write_gate_end_io))
		blk_write_gate_leave(bio);
}
#else /* CONFIG_BLK_FILTER */
static inline void blk_filter_resize_disk(struct gendisk *disk,
					  sector_t sectors)
{
}

static inline void blk_filter_resize_part(struct block_device *part,
					  sector_t sectors)
{
}

static inline void blk_filter_bio_endio(struct bio *bio)
{
}

static inline bool blk_filter_bio(struct bio *bio)
{
	return false;
}

static inline void blk_filter_del_disk(struct gendisk *disk)
{
}

static inline void blk_filter_del_part(struct block_device *part)
{
}

static inline void blk_filter_release_disk(struct gendisk *disk)
{
}

static inline int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
				   void __user *argp)
{
	return -ENOIOCTLCMD;
}
#endif /* CONFIG_BLK_FILTER */

#endif /* _BLK_FILTER_TREE_H */
