/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blkdev.h>
#include <linux/jump_label_ratelimit.h>

#ifdef CONFIG_BLK_FILTER
extern struct static_key_false_deferred blk_filter_enabled;

bool __blk_filter_bio(struct bio *bio);
void blk_filter_del_disk(struct gendisk *disk);
void blk_filter_del_part(struct block_device *part);
void blk_filter_release_disk(struct gendisk *disk);
extern struct device_attribute dev_attr_filters;

/*
 * Show @bio to the filters of its disk.  Called with the queue entered; returns
 * true if a filter took the bio, which must then not be touched any more.
 */
static inline bool blk_filter_bio(struct bio *bio)
{
	return static_branch_unlikely(&blk_filter_enabled.key) &&
	       bdev_test_flag(bio->bi_bdev, BD_FILTERED) &&
	       __blk_filter_bio(bio);
}

/*
 * Without capacity there is no medium (zram reset): what comes after it is
 * another one, as its sequence number must tell those who filtered the old one.
 */
static inline void blk_filter_set_capacity(struct gendisk *disk,
					   sector_t sectors)
{
	if (!sectors && disk->filters)
		inc_diskseq(disk);
}
#else /* CONFIG_BLK_FILTER */
static inline void blk_filter_set_capacity(struct gendisk *disk,
					   sector_t sectors)
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
#endif /* CONFIG_BLK_FILTER */

#endif /* _BLK_FILTER_INTERNAL_H */
