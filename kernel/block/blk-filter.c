// SPDX-License-Identifier: GPL-2.0
/*
 * Block filters: see each bio of a block device before its driver does.
 *
 * A filter is attached to a disk or a partition.  All filters of a disk hang on
 * the disk, because bios of partitions carry disk-relative sectors when they
 * reach the queue: a filter on the whole disk sees the I/O of all partitions,
 * and a filter on a partition also sees what is sent to its sectors through the
 * whole disk.
 *
 * This is what does not depend on how bios get here, and how it is known that a
 * disk goes: that is a matter of the front.  It is blk-filter-tree.c where the block
 * layer calls it, and stock/ where the kernel does not know of filters.  A front
 * warrants that a filter's decision and the hand-over to the driver are one: once
 * blk_filter_freeze_wait() has succeeded no task is between the two.  That is what
 * makes the list of filters safe to walk without a lock (it changes only while the
 * queue is frozen) and what a filter can build an exact point in time on.
 *
 * Locks: disk->open_mutex (attach and partition removal only), then fd->mutex,
 * then the queue freeze, then blk_filter_lock, which is a leaf and may be taken
 * with interrupts off.  A freeze may take as long as the device's I/O does: so
 * fd->mutex is only taken by who does something with that very disk.
 */
#include <linux/bio.h>
#include <linux/blk-filter.h>
#include <linux/blk-mq.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include "blk-filter.h"

/*
 * For who has not entered a queue: the lists of filters, and the device of each
 * filter, change with this held, too.
 */
static DEFINE_SPINLOCK(blk_filter_lock);

/* How high a stack of disks may be for the highest to be told of other data. */
#define BLK_FILTER_LEVELS	32

/*
 * A partition that got smaller may grow again: what another one writes there
 * meanwhile is shown as well.
 */
static sector_t blk_filter_sectors(const struct blk_filter *flt)
{
	return max(READ_ONCE(flt->sectors), bdev_nr_sectors(flt->bdev));
}

/* Whether a filter of its disk, or the gate, took the bio. */
bool __blk_filter_bio(struct blk_filter_disk *fd, struct bio *bio)
{
	struct blk_filter *flt;

	if (!bio_sectors(bio))
		return false;

	list_for_each_entry(flt, &fd->filters, node) {
		struct block_device *bdev = flt->bdev;

		if (!(flt->ops->op_mask & BIT_ULL(bio_op(bio))))
			continue;
		if (bdev_is_partition(bdev) &&
		    (bio->bi_iter.bi_sector >=
		     bdev->bd_start_sect + blk_filter_sectors(flt) ||
		     bio_end_sector(bio) <= bdev->bd_start_sect))
			continue;
		if (flt->ops->submit_bio(flt, bio))
			return true;
	}

	return fd->gate && op_is_write(bio->bi_opf) &&
	       !blk_write_gate_enter(fd->gate, bio);
}

static struct blk_filter_disk *blk_filter_alloc_disk(struct gendisk *disk)
{
	struct blk_filter_disk *fd = blk_front_alloc(disk);

	if (!fd)
		return NULL;
	if (bdev_test_flag(disk->part0, BD_HAS_SUBMIT_BIO)) {
		fd->gate = blk_write_gate_alloc();
		if (!fd->gate) {
			blk_front_free(fd);
			return NULL;
		}
	}
	mutex_init(&fd->mutex);
	INIT_LIST_HEAD(&fd->filters);
	return fd;
}

/* The front has forgotten the disk, and nobody uses what there was of it. */
void blk_filter_free_disk(struct blk_filter_disk *fd)
{
	blk_write_gate_free(fd->gate);
	blk_front_free(fd);
}

static int blk_filter_link(struct blk_filter *flt, struct block_device *bdev,
			   struct blk_filter_disk *fd)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_freeze freeze;
	unsigned int memflags;

	lockdep_assert_held(&fd->mutex);

	if (list_empty(&fd->filters)) {
		int ret = blk_front_begin(disk, fd);

		if (ret)
			return ret;
	}
	memflags = memalloc_noio_save();
	blk_filter_freeze_start(&freeze, disk->queue);
	blk_filter_freeze_wait(&freeze, MAX_SCHEDULE_TIMEOUT);
	if (list_empty(&fd->filters))
		blk_write_gate_begin(fd->gate);
	blk_front_flag(disk, true);
	spin_lock_irq(&blk_filter_lock);
	flt->bdev = bdev;
	flt->sectors = bdev_nr_sectors(bdev);
	list_add_tail(&flt->node, &fd->filters);
	/* This, and a lock in the unfreeze, order it before bios that enter. */
	spin_unlock_irq(&blk_filter_lock);
	blk_filter_freeze_end(&freeze);
	memalloc_noio_restore(memflags);
	return 0;
}

static void blk_filter_unlink(struct blk_filter *flt, struct blk_filter_disk *fd)
{
	struct gendisk *disk = flt->bdev->bd_disk;
	struct blk_filter_freeze freeze;
	unsigned int memflags;

	lockdep_assert_held(&fd->mutex);

	memflags = memalloc_noio_save();
	blk_filter_freeze_start(&freeze, disk->queue);
	blk_filter_freeze_wait(&freeze, MAX_SCHEDULE_TIMEOUT);
	spin_lock_irq(&blk_filter_lock);
	list_del_init(&flt->node);
	flt->bdev = NULL;
	spin_unlock_irq(&blk_filter_lock);
	if (list_empty(&fd->filters))
		blk_front_flag(disk, false);
	blk_filter_freeze_end(&freeze);
	memalloc_noio_restore(memflags);
	blk_front_sub(disk, fd);
}

/* Disks, of which each has the same class and type. */
static void blk_disk_iter_init(struct class_dev_iter *iter, struct gendisk *disk)
{
	class_dev_iter_init(iter, disk_to_dev(disk)->class, NULL,
			    disk_to_dev(disk)->type);
}

/**
 * blk_filter_check - look whether filters see all that is written to a device
 * @bdev: the device, held open by the caller, which has a filter, or is to get one
 *
 * blk_filter_attach() does so.  But a device may become one that is bypassed later: who
 * depends on each write should look again.
 *
 * Context: Process context.  Does not wait for I/O, nor for a frozen queue.
 * Return: 0, or -EOPNOTSUPP: it is zoned, has DAX, or is below request based device
 * mapper; logged.
 */
int blk_filter_check(struct block_device *bdev)
{
	struct class_dev_iter iter;
	bool bypassed = false;
	struct device *dev;

	if (bdev_is_zoned(bdev)) {
		pr_err_ratelimited("%pg: cannot be filtered: it is zoned\n", bdev);
		return -EOPNOTSUPP;
	}
	if (blk_queue_dax(bdev_get_queue(bdev))) {
		pr_err_ratelimited("%pg: cannot be filtered: its memory may be written to (DAX)\n",
				   bdev);
		return -EOPNOTSUPP;
	}
	/* Of those that say what they are made of, only device mapper is request based. */
	blk_disk_iter_init(&iter, bdev->bd_disk);
	while (!bypassed && (dev = class_dev_iter_next(&iter))) {
		struct gendisk *holder = dev_to_disk(dev);

		bypassed = queue_is_mq(holder->queue) &&
			   blk_front_holds(holder, bdev);
		if (bypassed)
			pr_err_ratelimited("%pg: cannot be filtered: %s sends requests to it, not bios\n",
					   bdev, holder->disk_name);
	}
	class_dev_iter_exit(&iter);
	return bypassed ? -EOPNOTSUPP : 0;
}
EXPORT_SYMBOL_GPL(blk_filter_check);

/**
 * blk_filter_attach - show the bios of a block device to a filter
 * @flt: the filter; need not be initialised
 * @bdev: the device, held open by the caller
 * @ops: what the filter does
 *
 * On return each bio that enters the queue is shown to the filter.  The filter
 * does not pin the device: when it is removed, &blk_filter_operations.gone is
 * called.
 *
 * Context: May sleep; freezes the queue.
 * Return: 0, -ENODEV if the device is being removed, -ENOMEM, or what
 * blk_filter_check() says, or the front: see blk_front_add().
 */
int blk_filter_attach(struct blk_filter *flt, struct block_device *bdev,
		      const struct blk_filter_operations *ops)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_disk *fd;
	int ret = 0;

	flt->ops = ops;
	flt->bdev = NULL;
	INIT_LIST_HEAD(&flt->node);
	atomic_set(&flt->held, 0);
	init_waitqueue_head(&flt->wait);

	ret = blk_front_add(disk);
	if (ret)
		return ret;
	ret = blk_filter_check(bdev);
	if (ret)
		goto sub;

	/* So the device does not go meanwhile; and see blk_front_flag(). */
	mutex_lock(&disk->open_mutex);
	if (!disk_live(disk) ||
	    xa_load(&disk->part_tbl, bdev_partno(bdev)) != bdev) {
		ret = -ENODEV;
		goto unlock;
	}
	fd = blk_front_disk(disk);
	if (!fd) {
		fd = blk_filter_alloc_disk(disk);
		if (!fd) {
			ret = -ENOMEM;
			goto unlock;
		}
		blk_front_publish(disk, fd);
	}
	mutex_lock(&fd->mutex);
	ret = blk_filter_link(flt, bdev, fd);
	mutex_unlock(&fd->mutex);
unlock:
	mutex_unlock(&disk->open_mutex);
	if (!ret)
		return 0;
sub:
	blk_front_sub(disk, NULL);
	blk_front_settle();
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_attach);

/**
 * blk_filter_detach - end what blk_filter_attach() began
 * @flt: the filter
 *
 * On return no callback of the filter runs or will run, and all bios that it
 * held are on their way.  The filter must go on ending its holds meanwhile.
 * May be called again.
 *
 * Context: May sleep; freezes the queue.
 */
void blk_filter_detach(struct blk_filter *flt)
{
	struct blk_filter_disk *fd = NULL;
	struct gendisk *disk = NULL;

	/* A device that goes takes its filters off before its last reference. */
	spin_lock_irq(&blk_filter_lock);
	if (flt->bdev) {
		disk = flt->bdev->bd_disk;
		fd = blk_front_disk(disk);
		get_device(disk_to_dev(disk));
	}
	spin_unlock_irq(&blk_filter_lock);
	if (disk) {
		mutex_lock(&fd->mutex);
		if (flt->bdev)
			blk_filter_unlink(flt, fd);
		mutex_unlock(&fd->mutex);
		put_disk(disk);
	}

	/* Not inside the freeze: a resubmitted bio has to enter the queue. */
	wait_event(flt->wait, !atomic_read(&flt->held));
	/* The last blk_filter_resubmit() is about to leave this lock. */
	spin_lock_irq(&flt->wait.lock);
	spin_unlock_irq(&flt->wait.lock);
	blk_front_settle();
}
EXPORT_SYMBOL_GPL(blk_filter_detach);

/*
 * The device of filters, or the code of their owner, goes: take off all filters
 * of @disk, or those of @part, or those of @owner.
 */
void blk_filter_remove(struct gendisk *disk, struct block_device *part,
		       struct module *owner)
{
	struct blk_filter_disk *fd = blk_front_disk(disk);
	struct blk_filter *flt, *next;

	if (!fd)
		return;
	mutex_lock(&fd->mutex);
	list_for_each_entry_safe(flt, next, &fd->filters, node) {
		if ((part && flt->bdev != part) ||
		    (owner && flt->ops->owner != owner))
			continue;
		if (owner)
			pr_err("%pg: filter \"%s\" was forgotten by its module\n",
			       flt->bdev, flt->ops->name);
		else if (flt->ops->gone)
			flt->ops->gone(flt);
		blk_filter_unlink(flt, fd);
	}
	mutex_unlock(&fd->mutex);
}

bool blk_filter_has_owner(struct gendisk *disk, struct module *owner)
{
	struct blk_filter_disk *fd = blk_front_disk(disk);
	struct blk_filter *flt;
	bool has = false;

	if (!fd)
		return false;
	spin_lock_irq(&blk_filter_lock);
	list_for_each_entry(flt, &fd->filters, node)
		has |= flt->ops->owner == owner;
	spin_unlock_irq(&blk_filter_lock);
	return has;
}

/*
 * Called by set_capacity(), in whatever context that is called, before it does
 * something.
 */
void blk_filter_resize_disk(struct gendisk *disk, sector_t sectors)
{
	struct blk_filter_disk *fd = blk_front_disk(disk);
	sector_t old = get_capacity(disk);
	struct blk_filter *flt;
	unsigned long flags;

	if (!fd || sectors == old)
		return;
	spin_lock_irqsave(&blk_filter_lock, flags);
	list_for_each_entry(flt, &fd->filters, node)
		if (flt->ops->resized)
			flt->ops->resized(flt, old, sectors);
	spin_unlock_irqrestore(&blk_filter_lock, flags);
}

/*
 * Called before a partition gets another size, with disk->open_mutex held, which
 * keeps blk_filter_attach() out.
 */
void blk_filter_resize_part(struct block_device *part, sector_t sectors)
{
	struct blk_filter_disk *fd = blk_front_disk(part->bd_disk);
	struct blk_filter *flt;
	unsigned long flags;

	if (!fd)
		return;
	spin_lock_irqsave(&blk_filter_lock, flags);
	list_for_each_entry(flt, &fd->filters, node)
		if (flt->bdev == part)
			WRITE_ONCE(flt->sectors, max(flt->sectors, sectors));
	spin_unlock_irqrestore(&blk_filter_lock, flags);
}

static void blk_filter_replace(struct gendisk *disk, int levels)
{
	struct blk_filter_disk *fd = blk_front_disk(disk);
	struct class_dev_iter iter;
	struct blk_filter *flt;
	struct device *dev;

	if (fd) {
		spin_lock_irq(&blk_filter_lock);
		list_for_each_entry(flt, &fd->filters, node)
			if (flt->ops->replaced)
				flt->ops->replaced(flt);
		spin_unlock_irq(&blk_filter_lock);
	}
	if (!levels) {
		pr_warn_once("%s: too many devices are stacked on it\n",
			     disk->disk_name);
		return;
	}
	blk_disk_iter_init(&iter, disk);
	while ((dev = class_dev_iter_next(&iter)))
		if (blk_front_holds(dev_to_disk(dev), disk->part0))
			blk_filter_replace(dev_to_disk(dev), levels - 1);
	class_dev_iter_exit(&iter);
}

/**
 * blk_filter_bio_has - whether a sector of a write begins with something
 * @bio: the bio that is shown to a filter
 * @mark: what to look for
 * @len: its length in bytes, up to a sector
 *
 * For filters that write something to see whether, and where, it comes by.
 *
 * Context: Where filters are called.
 * Return: Whether one does.
 */
bool blk_filter_bio_has(struct bio *bio, const void *mark, size_t len)
{
	struct bvec_iter iter;
	struct bio_vec bv;
	bool has = false;

	if (!bio_has_data(bio))
		return false;
	bio_for_each_segment(bv, bio, iter) {
		char *data = bvec_kmap_local(&bv);
		unsigned int at;

		for (at = 0; at + len <= bv.bv_len; at += SECTOR_SIZE)
			has |= !memcmp(data + at, mark, len);
		kunmap_local(data);
	}
	return has;
}
EXPORT_SYMBOL_GPL(blk_filter_bio_has);

static bool blk_disk_is_above(struct gendisk *disk, struct block_device *bdev,
			      int levels)
{
	struct class_dev_iter iter;
	struct device *dev;
	bool above = false;

	blk_disk_iter_init(&iter, disk);
	while (!above && levels && (dev = class_dev_iter_next(&iter))) {
		struct gendisk *holder = dev_to_disk(dev);

		if (blk_front_holds(holder, bdev))
			above = holder == disk ||
				blk_disk_is_above(disk, holder->part0,
						  levels - 1);
	}
	class_dev_iter_exit(&iter);
	return above;
}

/**
 * blk_filter_sees_writes - whether a filter sees what is written to another disk
 * @bdev: the device that has, or may get, the filter
 * @disk: the other disk
 *
 * That is so for a disk that is made of the device, directly or not, as far as the
 * kernel knows: by device mapper or md, but not by way of a file or a network.
 *
 * Context: Process context.
 * Return: Whether it does.
 */
bool blk_filter_sees_writes(struct block_device *bdev, struct gendisk *disk)
{
	return blk_disk_is_above(disk, bdev, BLK_FILTER_LEVELS);
}
EXPORT_SYMBOL_GPL(blk_filter_sees_writes);

/**
 * blk_filter_replace_data - tell filters that a disk gets other data
 * @disk: the disk
 *
 * For drivers that let a disk be made of something else, so that what is read
 * from it is other data that no bio of the disk wrote.  Call it before the first
 * bio can reach that.  The filters of all disks that are made of this one are
 * told, too, as far as their drivers say what they are made of
 * (bd_link_disk_holder()).
 *
 * Context: Process context.  Does not wait for I/O, nor for a frozen queue.
 */
void blk_filter_replace_data(struct gendisk *disk)
{
	if (blk_front_active())
		blk_filter_replace(disk, BLK_FILTER_LEVELS);
}
EXPORT_SYMBOL_GPL(blk_filter_replace_data);

/**
 * blk_filter_diskseq - identify the medium of a filtered device
 * @flt: the filter
 *
 * Some drivers (loop) give a disk another medium without removing it.  Its
 * sequence number changes then.
 *
 * Context: Process context.
 * Return: the sequence number of the disk, or 0 if the device has gone.
 */
u64 blk_filter_diskseq(struct blk_filter *flt)
{
	u64 seq = 0;

	spin_lock_irq(&blk_filter_lock);
	if (flt->bdev)
		seq = READ_ONCE(flt->bdev->bd_disk->diskseq);
	spin_unlock_irq(&blk_filter_lock);
	return seq;
}
EXPORT_SYMBOL_GPL(blk_filter_diskseq);

/**
 * blk_filter_hold - account for a bio that a filter takes
 * @flt: the filter
 * @bio: the bio
 *
 * Must be called from &blk_filter_operations.submit_bio, before the bio can be
 * resubmitted.
 */
void blk_filter_hold(struct blk_filter *flt, struct bio *bio)
{
	/* Whoever polls for it cannot know where it will be. */
	bio_clear_polled(bio);
	atomic_inc(&flt->held);
}
EXPORT_SYMBOL_GPL(blk_filter_hold);

/**
 * blk_filter_resubmit - let a held bio go on
 * @flt: the filter that holds the bio
 * @bio: the bio
 *
 * The bio enters the queue again and is shown to all filters again, @flt
 * included.  It is not charged, counted or checked a second time.
 *
 * Context: May sleep, while the queue is frozen.
 */
void blk_filter_resubmit(struct blk_filter *flt, struct bio *bio)
{
	blk_front_resubmit(bio);

	/*
	 * The owner may free the filter once blk_filter_detach() has seen zero
	 * and got this lock, so decrement and wake under it.
	 */
	spin_lock_irq(&flt->wait.lock);
	if (atomic_dec_and_test(&flt->held))
		wake_up_locked(&flt->wait);
	spin_unlock_irq(&flt->wait.lock);
}
EXPORT_SYMBOL_GPL(blk_filter_resubmit);

/* The names of the filters of a device, one in a line, as an attribute shows them. */
ssize_t blk_filter_show(struct block_device *bdev, char *buf)
{
	struct blk_filter_disk *fd = blk_front_disk(bdev->bd_disk);
	struct blk_filter *flt;
	ssize_t len = 0;

	if (!fd)
		return 0;
	spin_lock_irq(&blk_filter_lock);
	list_for_each_entry(flt, &fd->filters, node)
		if (flt->bdev == bdev)
			len += sysfs_emit_at(buf, len, "%s\n", flt->ops->name);
	spin_unlock_irq(&blk_filter_lock);
	return len;
}

/*
 * Whether a filter of that name is attached to the device: 0, -ENOENT if none is
 * at all, -EINVAL if only others are.
 */
int blk_filter_find(struct block_device *bdev, const char *name)
{
	struct blk_filter_disk *fd = blk_front_disk(bdev->bd_disk);
	struct blk_filter *flt;
	int ret = -ENOENT;

	if (!fd)
		return ret;
	spin_lock_irq(&blk_filter_lock);
	list_for_each_entry(flt, &fd->filters, node) {
		if (flt->bdev != bdev)
			continue;
		ret = strcmp(flt->ops->name, name) ? -EINVAL : 0;
		if (!ret)
			break;
	}
	spin_unlock_irq(&blk_filter_lock);
	return ret;
}
