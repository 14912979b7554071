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
 * The hook, blk_filter_bio(), stands after the queue was entered.  A filter's
 * decision and the hand-over to the driver thus happen under one reference on
 * q_usage_counter, and once the queue is frozen no task is between the two.  That
 * is what makes the list of filters safe to walk without a lock (it changes only
 * while the queue is frozen) and what a filter can build an exact point in time
 * on.
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
#include <linux/slab.h>
#include <linux/sysfs.h>
#include "blk.h"
#include "blk-filter.h"

/* Patched out late, so that coming and going filters do not patch all the time. */
DEFINE_STATIC_KEY_DEFERRED_FALSE(blk_filter_enabled, 10 * HZ);

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

/* Whether a filter took the bio. */
bool __blk_filter_bio(struct bio *bio)
{
	struct blk_filter_disk *fd = bio->bi_bdev->bd_disk->filters;
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
	struct blk_filter_disk *fd = kzalloc(sizeof(*fd), GFP_KERNEL);

	if (!fd)
		return NULL;
	if (bdev_test_flag(disk->part0, BD_HAS_SUBMIT_BIO)) {
		fd->gate = blk_write_gate_alloc();
		if (!fd->gate) {
			kfree(fd);
			return NULL;
		}
	}
	mutex_init(&fd->mutex);
	INIT_LIST_HEAD(&fd->filters);
	return fd;
}

static void blk_filter_flag_bdevs(struct gendisk *disk, bool on)
{
	struct block_device *part;
	unsigned long idx;

	rcu_read_lock();
	xa_for_each(&disk->part_tbl, idx, part) {
		if (on)
			bdev_set_flag(part, BD_FILTERED);
		else
			bdev_clear_flag(part, BD_FILTERED);
	}
	rcu_read_unlock();
}

static void blk_filter_link(struct blk_filter *flt, struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_disk *fd = disk->filters;
	unsigned int memflags;

	lockdep_assert_held(&fd->mutex);

	memflags = blk_mq_freeze_queue(disk->queue);
	if (list_empty(&fd->filters))
		blk_write_gate_begin(fd->gate);
	blk_filter_flag_bdevs(disk, true);
	spin_lock_irq(&blk_filter_lock);
	flt->bdev = bdev;
	flt->sectors = bdev_nr_sectors(bdev);
	list_add_tail(&flt->node, &fd->filters);
	/* This, and a lock in the unfreeze, order it before bios that enter. */
	spin_unlock_irq(&blk_filter_lock);
	blk_mq_unfreeze_queue(disk->queue, memflags);
}

static void blk_filter_unlink(struct blk_filter *flt)
{
	struct gendisk *disk = flt->bdev->bd_disk;
	struct blk_filter_disk *fd = disk->filters;
	unsigned int memflags;

	lockdep_assert_held(&fd->mutex);

	memflags = blk_mq_freeze_queue(disk->queue);
	spin_lock_irq(&blk_filter_lock);
	list_del_init(&flt->node);
	flt->bdev = NULL;
	spin_unlock_irq(&blk_filter_lock);
	if (list_empty(&fd->filters))
		blk_filter_flag_bdevs(disk, false);
	blk_mq_unfreeze_queue(disk->queue, memflags);
	static_branch_slow_dec_deferred(&blk_filter_enabled);
}

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
 * Return: 0, -ENODEV if the device is being removed, -EOPNOTSUPP for zoned
 * devices (their writes may bypass the hook), or -ENOMEM.
 */
int blk_filter_attach(struct blk_filter *flt, struct block_device *bdev,
		      const struct blk_filter_operations *ops)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_disk *fd;
	int ret = 0;

	if (bdev_is_zoned(bdev))
		return -EOPNOTSUPP;

	flt->ops = ops;
	flt->bdev = NULL;
	INIT_LIST_HEAD(&flt->node);
	atomic_set(&flt->held, 0);
	init_waitqueue_head(&flt->wait);

	/* Takes cpus_read_lock(), which does not nest into a freeze. */
	static_branch_deferred_inc(&blk_filter_enabled);

	/* New partitions inherit BD_FILTERED under open_mutex. */
	mutex_lock(&disk->open_mutex);
	if (!disk_live(disk) ||
	    xa_load(&disk->part_tbl, bdev_partno(bdev)) != bdev) {
		ret = -ENODEV;
		goto unlock;
	}
	fd = disk->filters;
	if (!fd) {
		fd = blk_filter_alloc_disk(disk);
		if (!fd) {
			ret = -ENOMEM;
			goto unlock;
		}
		/* Pairs with READ_ONCE() where it is looked at without open_mutex. */
		smp_store_release(&disk->filters, fd);
	}
	mutex_lock(&fd->mutex);
	blk_filter_link(flt, bdev);
	mutex_unlock(&fd->mutex);
unlock:
	mutex_unlock(&disk->open_mutex);
	if (ret)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
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
	struct gendisk *disk = NULL;

	/* A device that goes takes its filters off before its last reference. */
	spin_lock_irq(&blk_filter_lock);
	if (flt->bdev) {
		disk = flt->bdev->bd_disk;
		get_device(disk_to_dev(disk));
	}
	spin_unlock_irq(&blk_filter_lock);
	if (disk) {
		mutex_lock(&disk->filters->mutex);
		if (flt->bdev)
			blk_filter_unlink(flt);
		mutex_unlock(&disk->filters->mutex);
		put_disk(disk);
	}

	/* Not inside the freeze: a resubmitted bio has to enter the queue. */
	wait_event(flt->wait, !atomic_read(&flt->held));
	/* The last blk_filter_resubmit() is about to leave this lock. */
	spin_lock_irq(&flt->wait.lock);
	spin_unlock_irq(&flt->wait.lock);
}
EXPORT_SYMBOL_GPL(blk_filter_detach);

/*
 * The device of filters, or the code of their owner, goes: take off all filters
 * of @disk, or those of @part, or those of @owner.
 */
static void blk_filter_remove(struct gendisk *disk, struct block_device *part,
			      struct module *owner)
{
	struct blk_filter_disk *fd = READ_ONCE(disk->filters);
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
		blk_filter_unlink(flt);
	}
	mutex_unlock(&fd->mutex);
}

/*
 * Called by del_gendisk() with no locks, after disk_live() became false: so
 * blk_filter_attach() adds no filter any more.
 */
void blk_filter_del_disk(struct gendisk *disk)
{
	blk_filter_remove(disk, NULL, NULL);
}

/*
 * Called when a partition is removed, with disk->open_mutex held, which keeps
 * blk_filter_attach() out.
 */
void blk_filter_del_part(struct block_device *part)
{
	struct blk_filter_disk *fd = part->bd_disk->filters;

	/*
	 * When the whole disk goes, blk_filter_del_disk() has been called, and
	 * the queue is frozen, where the mutex must not be taken.
	 */
	if (fd && !list_empty(&fd->filters))
		blk_filter_remove(part->bd_disk, part, NULL);
}

/* Called when the last reference on the disk is dropped. */
void blk_filter_release_disk(struct gendisk *disk)
{
	if (!disk->filters)
		return;
	blk_write_gate_free(disk->filters->gate);
	kfree(disk->filters);
}

static bool blk_filter_has_owner(struct gendisk *disk, struct module *owner)
{
	struct blk_filter_disk *fd = READ_ONCE(disk->filters);
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
 * A module's exit function has run, and its code is about to be freed.  Disks that
 * have no filter of it are not waited for.
 */
static int blk_filter_module_event(struct notifier_block *nb,
				   unsigned long event, void *module)
{
	struct class_dev_iter iter;
	struct device *dev;

	if (event != MODULE_STATE_GOING ||
	    !static_key_enabled(&blk_filter_enabled.key))
		return NOTIFY_DONE;
	class_dev_iter_init(&iter, &block_class, NULL, &disk_type);
	while ((dev = class_dev_iter_next(&iter)))
		if (blk_filter_has_owner(dev_to_disk(dev), module))
			blk_filter_remove(dev_to_disk(dev), NULL, module);
	class_dev_iter_exit(&iter);
	return NOTIFY_OK;
}

static struct notifier_block blk_filter_module_nb = {
	.notifier_call = blk_filter_module_event,
};

static int __init blk_filter_setup(void)
{
	return register_module_notifier(&blk_filter_module_nb);
}
subsys_initcall(blk_filter_setup);

/*
 * Called by set_capacity(), in whatever context that is called, before it does
 * something.
 */
void blk_filter_resize_disk(struct gendisk *disk, sector_t sectors)
{
	struct blk_filter_disk *fd = READ_ONCE(disk->filters);
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
	struct blk_filter_disk *fd = part->bd_disk->filters;
	struct blk_filter *flt;

	if (!fd)
		return;
	spin_lock_irq(&blk_filter_lock);
	list_for_each_entry(flt, &fd->filters, node)
		if (flt->bdev == part)
			WRITE_ONCE(flt->sectors, max(flt->sectors, sectors));
	spin_unlock_irq(&blk_filter_lock);
}

static void blk_filter_replace(struct gendisk *disk, int levels)
{
	struct blk_filter_disk *fd = READ_ONCE(disk->filters);
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
	class_dev_iter_init(&iter, &block_class, NULL, &disk_type);
	while ((dev = class_dev_iter_next(&iter)))
		if (bd_disk_holds(dev_to_disk(dev), disk->part0))
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

	class_dev_iter_init(&iter, &block_class, NULL, &disk_type);
	while (!above && levels && (dev = class_dev_iter_next(&iter))) {
		struct gendisk *holder = dev_to_disk(dev);

		if (bd_disk_holds(holder, bdev))
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
	if (static_key_enabled(&blk_filter_enabled.key))
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
	resubmit_bio_noacct_nocheck(bio, false);

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

static ssize_t filters_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct block_device *bdev = dev_to_bdev(dev);
	struct blk_filter_disk *fd = READ_ONCE(bdev->bd_disk->filters);
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
DEVICE_ATTR_RO(filters);

static ssize_t filter_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	ssize_t len = filters_show(dev, attr, buf);
	char *end = memchr(buf, '\n', len);

	/* Programs that know of one filter: the first. */
	return end ? end + 1 - buf : sysfs_emit(buf, "\n");
}
DEVICE_ATTR_RO(filter);

/*
 * Whether a filter of that name is attached to the device: 0, -ENOENT if none is
 * at all, -EINVAL if only others are.
 */
int blk_filter_find(struct block_device *bdev, const char *name)
{
	struct blk_filter_disk *fd = READ_ONCE(bdev->bd_disk->filters);
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
