// SPDX-License-Identifier: GPL-2.0

#include <linux/bio.h>
#include <linux/blk-cgroup.h>
#include <linux/blk-filter.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/part_stat.h>
#include <linux/sched/mm.h>

#ifdef CONFIG_BLOCK
__rust_helper void rust_helper_zero_fill_bio(struct bio *bio)
{
	zero_fill_bio(bio);
}

__rust_helper void rust_helper_bio_charge_root(struct bio *bio)
{
	bio_associate_blkg_from_css(bio, blkcg_root_css);
}

#ifndef CONFIG_BLK_FILTER_STOCK
__rust_helper void
rust_helper_blk_filter_freeze_start(struct blk_filter_freeze *freeze,
				    struct request_queue *q)
{
	blk_filter_freeze_start(freeze, q);
}

__rust_helper bool
rust_helper_blk_filter_freeze_wait(struct blk_filter_freeze *freeze,
				   unsigned long timeout)
{
	return blk_filter_freeze_wait(freeze, timeout);
}

__rust_helper void
rust_helper_blk_filter_freeze_end(struct blk_filter_freeze *freeze)
{
	blk_filter_freeze_end(freeze);
}
#endif
#endif

__rust_helper bool rust_helper_bio_in_atomic(void)
{
	return bio_in_atomic();
}

__rust_helper void rust_helper_memzero_page(struct page *page, size_t offset,
					    size_t len)
{
	memzero_page(page, offset, len);
}

__rust_helper sector_t rust_helper_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

__rust_helper bool rust_helper_bdev_is_partition(struct block_device *bdev)
{
	return bdev_is_partition(bdev);
}

__rust_helper bool rust_helper_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

__rust_helper unsigned long rust_helper_bdev_count_writes(struct block_device *bdev)
{
	return part_stat_read(bdev, ios[STAT_WRITE]) +
	       part_stat_read(bdev, ios[STAT_DISCARD]) +
	       part_stat_read(bdev, ios[STAT_FLUSH]);
}

__rust_helper unsigned int rust_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

__rust_helper void rust_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

__rust_helper void rust_helper_memcpy_to_page(struct page *page, size_t offset,
					      const char *from, size_t len)
{
	memcpy_to_page(page, offset, from, len);
}
