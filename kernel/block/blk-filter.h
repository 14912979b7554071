/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blkdev.h>
#include <linux/jump_label_ratelimit.h>

#ifdef CONFIG_BLK_FILTER
extern struct static_key_false_deferred blk_filter_enabled;

bool __blk_filter_bio(struct bio *bio);
void blk_filter_write_end_io(struct bio *bio);
void blk_filter_uncount_write(struct bio *bio);
void blk_filter_set_capacity(struct gendisk *disk, sector_t sectors);
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
 * Called where a bio ends.  If it is a counted write, it has the completion of its
 * submitter after this: bio_endio() walks a chain of bios by that, which would
 * recurse, once for each bio, if a completion of ours called it.
 */
static inline void blk_filter_bio_endio(struct bio *bio)
{
	if (bio->bi_end_io == blk_filter_write_end_io)
		blk_filter_uncount_write(bio);
}
#else /* CONFIG_BLK_FILTER */
static inline void blk_filter_set_capacity(struct gendisk *disk,
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
#endif /* CONFIG_BLK_FILTER */

#endif /* _BLK_FILTER_INTERNAL_H */
