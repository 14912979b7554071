// SPDX-License-Identifier: GPL-2.0
/*
 * Block filters, called by the block layer: what blk-filter.c asks of its front.
 *
 * The hook, blk_filter_bio(), stands after the queue was entered.  A filter's
 * decision and the hand-over to the driver thus happen under one reference on
 * q_usage_counter, and once the queue is frozen no task is between the two.
 *
 * Locks: as in blk-filter.c.
 */
#include <linux/bio.h>
#include <linux/blk-filter.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include "blk.h"
#include "blk-filter-tree.h"

/* Patched out late, so that coming and going filters do not patch all the time. */
DEFINE_STATIC_KEY_DEFERRED_FALSE(blk_filter_enabled, 10 * HZ);

/*
 * A filter is about to be attached to the disk; with no locks.  Returns 0, or why no
 * filter can see its bios.
 */
int blk_front_add(struct gendisk *disk)
{
	/* Takes cpus_read_lock(), which does not nest into a freeze. */
	static_branch_deferred_inc(&blk_filter_enabled);
	return 0;
}

/* Undoes it; also when the disk goes.  @fd is NULL if the filter was not attached. */
void blk_front_sub(struct gendisk *disk, struct blk_filter_disk *fd)
{
	static_branch_slow_dec_deferred(&blk_filter_enabled);
}

/* A filter was detached, and no lock is held. */
void blk_front_settle(void)
{
}

/* Whether any disk may have a filter. */
bool blk_front_active(void)
{
	return static_key_enabled(&blk_filter_enabled.key);
}

struct blk_filter_disk *blk_front_alloc(struct gendisk *disk)
{
	return kzalloc_obj(struct blk_filter_disk);
}

void blk_front_free(struct blk_filter_disk *fd)
{
	kfree(fd);
}

/* What there is of a disk, if there is something.  For any context. */
struct blk_filter_disk *blk_front_disk(struct gendisk *disk)
{
	return READ_ONCE(disk->filters);
}

/* With disk->open_mutex held. */
void blk_front_publish(struct gendisk *disk, struct blk_filter_disk *fd)
{
	/* Pairs with READ_ONCE() where it is looked at without open_mutex. */
	smp_store_release(&disk->filters, fd);
}

/* The first filter of a disk comes, with disk->open_mutex and fd->mutex held. */
int blk_front_begin(struct gendisk *disk, struct blk_filter_disk *fd)
{
	return 0;
}

/*
 * Whether the disk has filters changes; its queue is frozen.  New partitions inherit
 * the flag under disk->open_mutex.
 */
void blk_front_flag(struct gendisk *disk, bool on)
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

/* Whether @disk is made of @slave, or of something that it has sectors in common with. */
bool blk_front_holds(struct gendisk *disk, struct block_device *slave)
{
	return bd_disk_holds(disk, slave);
}

/* Let a bio that was held enter the queue again.  May sleep. */
void blk_front_resubmit(struct bio *bio)
{
	resubmit_bio_noacct_nocheck(bio, false);
}

/* A counted write is about to be ended: bio_endio() cares for what ends with it. */
void blk_front_end_chain(struct bio *bio)
{
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
	if (disk->filters)
		blk_filter_free_disk(disk->filters);
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

	if (event != MODULE_STATE_GOING || !blk_front_active())
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

static ssize_t filters_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	return blk_filter_show(dev_to_bdev(dev), buf);
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

static int __init blk_filter_setup(void)
{
	if (blk_write_gate_setup())
		panic("Failed to set up write gates\n");
	return register_module_notifier(&blk_filter_module_nb);
}
subsys_initcall(blk_filter_setup);
