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
 * The hook stands after the queue was entered.  A filter's decision and the
 * hand-over to the driver thus happen under one reference on q_usage_counter,
 * and freezing the queue means that nobody is in between.  That is what makes
 * the list of filters safe to walk without a lock (it changes only while the
 * queue is frozen) and what a filter can build an exact point in time on.
 *
 * A freeze of a request based queue also waits for all I/O in flight.  The queue
 * of a bio based driver is not drained by it, so that writes to a filtered bio
 * based disk are counted here: blk_filter_gate() stops new writes and waits for
 * those that were let through.
 *
 * Locks: disk->open_mutex (attach and partition removal only), then fd->mutex,
 * then the queue freeze, then blk_filter_lock.  That, and fd->lock, are leaves.
 * A freeze may take as long as the device's I/O does: so nobody waits for it but
 * those who do something with that very disk.
 */
#include <linux/bio.h>
#include <linux/blk-filter.h>
#include <linux/blk-mq.h>
#include <linux/mempool.h>
#include <linux/part_stat.h>
#include <linux/percpu.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>
#include "blk.h"
#include "blk-filter.h"

/* Counted writes of a disk that make progress whatever the state of memory. */
#define BLK_FILTER_POOL_SIZE	64

/**
 * struct blk_filter_disk - the filters of a disk
 * @mutex: held while filters come and go, and across the freeze for that
 * @filters: list of struct blk_filter
 * @bio_based: count writes, since a queue freeze does not wait for them
 * @pool: of struct blk_filter_write, for a bio based disk; one for each disk, as
 *	the writes of one may wait for those of another below it
 * @writes: writes let through and not completed: the sum of all processors
 * @uncounted: writes that began without a filter may be in flight
 * @shrinks: how often the disk got smaller
 * @least: the least number of sectors that this medium got then
 * @wait: woken when a write is completed while there is a gate
 * @gates: number of blk_filter_gate() not yet undone
 * @lock: protects @waiting and changes of @gates
 * @waiting: writes that wait for the gate to open, or for memory
 * @release_work: resubmits @waiting
 *
 * Allocated with the first filter, freed with the disk.
 */
struct blk_filter_disk {
	struct mutex mutex;	/* held while filters come and go */
	struct list_head filters;
	bool bio_based;
	mempool_t pool;
	unsigned long __percpu *writes;
	bool uncounted;
	unsigned int shrinks;
	sector_t least;
	wait_queue_head_t wait;
	unsigned int gates;
	spinlock_t lock;	/* protects waiting and changes of gates */
	struct bio_list waiting;
	struct delayed_work release_work;
};

/* What a counted write's completion was before we put ours in its place. */
struct blk_filter_write {
	struct blk_filter_disk *fd;
	bio_end_io_t *end_io;
	void *private;
};

/* Patched out late, so that coming and going filters do not patch all the time. */
DEFINE_STATIC_KEY_DEFERRED_FALSE(blk_filter_enabled, 10 * HZ);
/* Protects the device of each filter, which changes with fd->mutex held, too. */
static DEFINE_SPINLOCK(blk_filter_lock);
static struct workqueue_struct *blk_filter_wq;

static void blk_filter_release_workfn(struct work_struct *work)
{
	struct blk_filter_disk *fd = container_of(to_delayed_work(work),
						  struct blk_filter_disk,
						  release_work);
	struct bio_list bios = BIO_EMPTY_LIST;
	struct bio *bio;

	spin_lock(&fd->lock);
	if (!fd->gates) {
		bios = fd->waiting;
		bio_list_init(&fd->waiting);
	}
	spin_unlock(&fd->lock);

	while ((bio = bio_list_pop(&bios)))
		submit_bio_noacct_nocheck(bio, false);
}

/*
 * A counted write has been completed: bio_endio() goes on with the completion of
 * its submitter.
 */
void blk_filter_uncount_write(struct bio *bio)
{
	struct blk_filter_write *write = bio->bi_private;
	struct blk_filter_disk *fd = write->fd;

	bio->bi_end_io = write->end_io;
	bio->bi_private = write->private;
	bio_clear_flag(bio, BIO_FILTERED);
	mempool_free(write, &fd->pool);

	/* Who reads a sum of zero after this sees the data of the write. */
	smp_mb();
	this_cpu_dec(*fd->writes);
	/* Who waits either sees the new sum, or has set gates before. */
	smp_mb();
	/* The disk, and so fd, cannot go before the bio was ended. */
	if (READ_ONCE(fd->gates))
		wake_up(&fd->wait);
}

/* A mark for bio_endio(), which does not call it. */
void blk_filter_write_end_io(struct bio *bio)
{
	blk_filter_uncount_write(bio);
	bio_endio(bio);
}

/*
 * Whether all counted writes have been completed.  To be called with the gate
 * closed and all that came before it counted: so nothing is added beside us,
 * what is subtracted beside us makes the sum too large at the worst, and zero
 * means zero.
 */
static bool blk_filter_drained(struct blk_filter_disk *fd)
{
	unsigned long writes = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		writes += READ_ONCE(*per_cpu_ptr(fd->writes, cpu));
	/* Pairs with the first barrier in blk_filter_uncount_write(). */
	smp_mb();
	return !writes;
}

/*
 * Count a write that is about to be handed to a bio based driver.  Returns true
 * if it has to wait instead.
 */
static bool blk_filter_count_write(struct blk_filter_disk *fd, struct bio *bio)
{
	struct blk_filter_write *write = NULL;

	/*
	 * The gate closes while the queue is frozen, so not beside us.  It may
	 * open beside us, hence the second look under the lock.
	 */
	if (!data_race(fd->gates))
		write = mempool_alloc(&fd->pool, GFP_NOWAIT | __GFP_NOWARN);
	if (!write) {
		if (bio->bi_opf & REQ_NOWAIT) {
			bio_wouldblock_error(bio);
			return true;
		}
		spin_lock(&fd->lock);
		bio_list_add(&fd->waiting, bio);
		if (!fd->gates)
			queue_delayed_work(blk_filter_wq, &fd->release_work, 1);
		spin_unlock(&fd->lock);
		return true;
	}

	write->fd = fd;
	write->end_io = bio->bi_end_io;
	write->private = bio->bi_private;
	bio->bi_end_io = blk_filter_write_end_io;
	bio->bi_private = write;
	/* A polling submitter would look for its own bi_private. */
	bio_clear_polled(bio);
	bio_set_flag(bio, BIO_FILTERED);
	this_cpu_inc(*fd->writes);
	return false;
}

/*
 * A partition that got smaller may grow again: what another one writes there
 * meanwhile is shown as well.
 */
static sector_t blk_filter_sectors(const struct blk_filter *flt)
{
	return max(flt->sectors, bdev_nr_sectors(flt->bdev));
}

bool __blk_filter_bio(struct bio *bio)
{
	struct blk_filter_disk *fd = bio->bi_bdev->bd_disk->filters;
	struct blk_filter *flt;

	if (!bio_sectors(bio))
		return false;

	list_for_each_entry(flt, &fd->filters, node) {
		struct block_device *bdev = flt->bdev;

		if (bdev_is_partition(bdev) &&
		    (bio->bi_iter.bi_sector >=
		     bdev->bd_start_sect + blk_filter_sectors(flt) ||
		     bio_end_sector(bio) <= bdev->bd_start_sect))
			continue;
		if (flt->ops->submit_bio(flt, bio))
			return true;
	}

	/* A remainder of a counted write is covered by the count it carries. */
	if (fd->bio_based && op_is_write(bio->bi_opf) &&
	    !bio_flagged(bio, BIO_FILTERED))
		return blk_filter_count_write(fd, bio);
	return false;
}

/**
 * blk_filter_init - initialise a filter
 * @flt: the filter
 * @ops: its operations
 *
 * The filter is not attached yet; blk_filter_detach() may be called all the
 * same.
 */
void blk_filter_init(struct blk_filter *flt,
		     const struct blk_filter_operations *ops)
{
	flt->ops = ops;
	flt->bdev = NULL;
	flt->sectors = 0;
	INIT_LIST_HEAD(&flt->node);
	atomic_set(&flt->held, 0);
	init_waitqueue_head(&flt->wait);
}
EXPORT_SYMBOL_GPL(blk_filter_init);

static struct blk_filter_disk *blk_filter_alloc_disk(struct gendisk *disk)
{
	struct blk_filter_disk *fd = kzalloc(sizeof(*fd), GFP_KERNEL);

	if (!fd)
		return NULL;
	fd->bio_based = bdev_test_flag(disk->part0, BD_HAS_SUBMIT_BIO);
	fd->writes = alloc_percpu(unsigned long);
	if (!fd->writes ||
	    (fd->bio_based &&
	     mempool_init_kmalloc_pool(&fd->pool, BLK_FILTER_POOL_SIZE,
				       sizeof(struct blk_filter_write)))) {
		free_percpu(fd->writes);
		kfree(fd);
		return NULL;
	}
	fd->least = ~0ULL;
	mutex_init(&fd->mutex);
	INIT_LIST_HEAD(&fd->filters);
	init_waitqueue_head(&fd->wait);
	spin_lock_init(&fd->lock);
	INIT_DELAYED_WORK(&fd->release_work, blk_filter_release_workfn);
	return fd;
}

static void blk_filter_set_bdev(struct blk_filter *flt,
				struct block_device *bdev)
{
	spin_lock(&blk_filter_lock);
	flt->bdev = bdev;
	spin_unlock(&blk_filter_lock);
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

/**
 * blk_filter_attach - show the bios of a block device to a filter
 * @flt: an initialised filter that is not attached
 * @bdev: the device, held open by the caller
 *
 * On return each bio that enters the queue is shown to the filter.  The filter
 * does not pin the device: when it is removed, &blk_filter_operations.gone is
 * called.
 *
 * Context: May sleep; freezes the queue.
 * Return: 0, -ENODEV if the device is being removed, -EOPNOTSUPP for zoned
 * devices (their writes may bypass the hook), or -ENOMEM.
 */
int blk_filter_attach(struct blk_filter *flt, struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_disk *fd;
	unsigned int memflags;
	int ret = 0;

	if (bdev_is_zoned(bdev))
		return -EOPNOTSUPP;

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
	memflags = blk_mq_freeze_queue(disk->queue);
	blk_filter_set_bdev(flt, bdev);
	flt->sectors = bdev_nr_sectors(bdev);
	if (list_empty(&fd->filters))
		fd->uncounted = fd->bio_based;
	list_add_tail(&flt->node, &fd->filters);
	blk_filter_flag_bdevs(disk, true);
	blk_mq_unfreeze_queue(disk->queue, memflags);
	mutex_unlock(&fd->mutex);
unlock:
	mutex_unlock(&disk->open_mutex);
	if (ret)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_attach);

static void blk_filter_unlink(struct blk_filter *flt)
{
	struct gendisk *disk = flt->bdev->bd_disk;
	unsigned int memflags;

	lockdep_assert_held(&disk->filters->mutex);

	memflags = blk_mq_freeze_queue(disk->queue);
	list_del_init(&flt->node);
	if (list_empty(&disk->filters->filters))
		blk_filter_flag_bdevs(disk, false);
	blk_filter_set_bdev(flt, NULL);
	blk_mq_unfreeze_queue(disk->queue, memflags);
}

/**
 * blk_filter_detach - end what blk_filter_attach() began
 * @flt: the filter
 *
 * On return no callback of the filter runs or will run, and all bios that it
 * held are on their way.  The filter must go on ending its holds meanwhile.
 *
 * Context: May sleep; freezes the queue.
 */
void blk_filter_detach(struct blk_filter *flt)
{
	struct gendisk *disk = NULL;
	bool attached = false;

	/* A device that goes takes its filters off before its last reference. */
	spin_lock(&blk_filter_lock);
	if (flt->bdev) {
		disk = flt->bdev->bd_disk;
		get_device(disk_to_dev(disk));
	}
	spin_unlock(&blk_filter_lock);
	if (disk) {
		mutex_lock(&disk->filters->mutex);
		attached = flt->bdev;
		if (attached)
			blk_filter_unlink(flt);
		mutex_unlock(&disk->filters->mutex);
		put_disk(disk);
	}
	if (attached)
		static_branch_slow_dec_deferred(&blk_filter_enabled);

	/* Not inside the freeze: a resubmitted bio has to enter the queue. */
	wait_event(flt->wait, !atomic_read(&flt->held));
	/* The last blk_filter_resubmit() is about to leave this lock. */
	spin_lock_irq(&flt->wait.lock);
	spin_unlock_irq(&flt->wait.lock);
}
EXPORT_SYMBOL_GPL(blk_filter_detach);

static void blk_filter_gone(struct blk_filter *flt)
{
	if (flt->ops->gone)
		flt->ops->gone(flt);
	blk_filter_unlink(flt);
}

/* Called by del_gendisk(), after disk_live() became false and with no locks. */
void blk_filter_del_disk(struct gendisk *disk)
{
	struct blk_filter *flt, *next;
	unsigned int nr = 0;

	/* No new filter: blk_filter_attach() looks at disk_live(). */
	if (!disk->filters)
		return;
	mutex_lock(&disk->filters->mutex);
	list_for_each_entry_safe(flt, next, &disk->filters->filters, node) {
		blk_filter_gone(flt);
		nr++;
	}
	mutex_unlock(&disk->filters->mutex);
	while (nr--)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
}

/* Called when a partition is removed, with disk->open_mutex held. */
void blk_filter_del_part(struct block_device *part)
{
	struct gendisk *disk = part->bd_disk;
	struct blk_filter *flt, *next;
	unsigned int nr = 0;

	/*
	 * open_mutex keeps attachers out.  When the whole disk goes the list is
	 * empty already and the queue frozen, where the mutex must not be taken.
	 */
	if (!disk->filters || list_empty(&disk->filters->filters))
		return;
	mutex_lock(&disk->filters->mutex);
	list_for_each_entry_safe(flt, next, &disk->filters->filters, node) {
		if (flt->bdev != part)
			continue;
		blk_filter_gone(flt);
		nr++;
	}
	mutex_unlock(&disk->filters->mutex);
	while (nr--)
		static_branch_slow_dec_deferred(&blk_filter_enabled);
}

/* Called by set_capacity(), which is not called twice at a time for a disk. */
void blk_filter_set_capacity(struct gendisk *disk, sector_t sectors)
{
	struct blk_filter_disk *fd = READ_ONCE(disk->filters);

	if (!fd || sectors >= get_capacity(disk))
		return;
	/* Without capacity there is no medium (zram reset); the next one is another. */
	if (!sectors) {
		inc_diskseq(disk);
		WRITE_ONCE(fd->least, ~0ULL);
		return;
	}
	WRITE_ONCE(fd->least, min(fd->least, sectors));
	/* Who sees the new number sees the new minimum. */
	smp_store_release(&fd->shrinks, fd->shrinks + 1);
}

/**
 * blk_filter_shrinks - tell how often a disk got smaller
 * @bdev: the disk or a partition of it, held open by the caller
 * @least: set to the least number of sectors that the disk has had then
 *
 * When a disk grows again, what is behind the end that it had may be another's
 * data.  Who finds the same number after reading something knows that this has not
 * happened since.
 *
 * Context: Any.
 * Return: a number that changes when the disk gets smaller while it has, or has
 * had, a filter.
 */
unsigned int blk_filter_shrinks(struct block_device *bdev, sector_t *least)
{
	struct blk_filter_disk *fd = READ_ONCE(bdev->bd_disk->filters);
	unsigned int shrinks = 0;

	*least = ~0ULL;
	if (fd) {
		/* Pairs with the release in blk_filter_set_capacity(). */
		shrinks = smp_load_acquire(&fd->shrinks);
		*least = READ_ONCE(fd->least);
	}
	return shrinks;
}
EXPORT_SYMBOL_GPL(blk_filter_shrinks);

/* Called when the last reference on the disk is dropped. */
void blk_filter_release_disk(struct gendisk *disk)
{
	if (!disk->filters)
		return;
	cancel_delayed_work_sync(&disk->filters->release_work);
	mempool_exit(&disk->filters->pool);
	free_percpu(disk->filters->writes);
	kfree(disk->filters);
}

/**
 * blk_filter_diskseq - identify the medium of a filtered device
 * @flt: the filter
 *
 * Some drivers (loop, zram) give a disk another medium without removing it.
 * Its sequence number tells: it changes then.
 *
 * Context: Any but interrupts.
 * Return: the sequence number of the disk, or 0 if the device has gone.
 */
u64 blk_filter_diskseq(struct blk_filter *flt)
{
	u64 seq = 0;

	spin_lock(&blk_filter_lock);
	if (flt->bdev)
		seq = READ_ONCE(flt->bdev->bd_disk->diskseq);
	spin_unlock(&blk_filter_lock);
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
 * included.  It is not charged or checked a second time.
 *
 * Context: May sleep, while the queue is frozen.
 */
void blk_filter_resubmit(struct blk_filter *flt, struct bio *bio)
{
	submit_bio_noacct_nocheck(bio, false);

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

/*
 * Writes that entered a bio based driver before there was a filter to count them
 * are known from the driver's I/O accounting only, which cannot be waited on.
 */
static bool blk_filter_wait_uncounted(struct gendisk *disk,
				      unsigned long deadline)
{
	for (;;) {
		int inflight = 0, cpu;

		for_each_possible_cpu(cpu)
			inflight += part_stat_local_read_cpu(disk->part0,
							     in_flight[WRITE],
							     cpu);
		if (inflight <= 0)
			return true;
		if (time_after(jiffies, deadline))
			return false;
		schedule_timeout_uninterruptible(1);
	}
}

/**
 * blk_filter_gate - stop the writes of a device and drain them
 * @bdev: a device that has a filter attached, held open by the caller
 * @timeout: how long to wait for writes in flight, in jiffies
 *
 * Only bio based disks need this and are affected: on return their new writes
 * wait, and those let through before have been completed by the driver.  For
 * request based ones freezing the queue does the same.
 *
 * Writes from before the first filter was attached are found by the driver's
 * accounting; if that is off ("iostats") or begins late (dm-crypt, dm-delay),
 * they are not waited for.
 *
 * Context: May sleep; freezes the queue for a moment, within @timeout: who is in
 * the driver may wait for another device that is stopped.
 * Return: 0, or -ETIMEDOUT; then the gate is open again.
 */
int blk_filter_gate(struct block_device *bdev, unsigned long timeout)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_filter_disk *fd = disk->filters;
	unsigned long deadline = jiffies + timeout;
	unsigned int memflags;
	long left;

	if (!fd->bio_based)
		return 0;

	memflags = memalloc_noio_save();
	blk_freeze_queue_start(disk->queue);
	left = blk_mq_freeze_queue_wait_timeout(disk->queue, timeout);
	if (left > 0) {
		spin_lock(&fd->lock);
		WRITE_ONCE(fd->gates, fd->gates + 1);
		spin_unlock(&fd->lock);
	}
	blk_mq_unfreeze_queue(disk->queue, memflags);
	if (left <= 0)
		return -ETIMEDOUT;

	if (!wait_event_timeout(fd->wait, blk_filter_drained(fd), left))
		goto timed_out;
	if (fd->uncounted) {
		if (!blk_filter_wait_uncounted(disk, deadline))
			goto timed_out;
		fd->uncounted = false;
	}
	return 0;

timed_out:
	blk_filter_ungate(bdev);
	return -ETIMEDOUT;
}
EXPORT_SYMBOL_GPL(blk_filter_gate);

/**
 * blk_filter_ungate - undo blk_filter_gate()
 * @bdev: the device
 *
 * The writes that waited go on in a work item: the caller may have stopped the
 * device that they are for.
 *
 * Context: May sleep.
 */
void blk_filter_ungate(struct block_device *bdev)
{
	struct blk_filter_disk *fd = bdev->bd_disk->filters;

	if (!fd->bio_based)
		return;
	spin_lock(&fd->lock);
	WRITE_ONCE(fd->gates, fd->gates - 1);
	if (!fd->gates && !bio_list_empty(&fd->waiting))
		mod_delayed_work(blk_filter_wq, &fd->release_work, 0);
	spin_unlock(&fd->lock);
}
EXPORT_SYMBOL_GPL(blk_filter_ungate);

static ssize_t filters_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct block_device *bdev = dev_to_bdev(dev);
	struct blk_filter_disk *fd = READ_ONCE(bdev->bd_disk->filters);
	struct blk_filter *flt;
	ssize_t len = 0;

	if (!fd)
		return 0;
	mutex_lock(&fd->mutex);
	list_for_each_entry(flt, &fd->filters, node)
		if (flt->bdev == bdev)
			len += sysfs_emit_at(buf, len, "%s\n", flt->ops->name);
	mutex_unlock(&fd->mutex);
	return len;
}
DEVICE_ATTR_RO(filters);

static int __init blk_filter_setup(void)
{
	blk_filter_wq = alloc_workqueue("blk_filter",
					WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!blk_filter_wq)
		panic("Failed to set up block filters\n");
	return 0;
}
subsys_initcall(blk_filter_setup);
