// SPDX-License-Identifier: GPL-2.0
/*
 * Write gates: stop and drain the writes of a filtered bio based disk.
 *
 * A freeze of a request based queue waits for all I/O in flight.  That of a bio
 * based driver only waits for calls of its ->submit_bio().  So as long as such a
 * disk has a filter, its writes are counted from the hook on, until bio_endio():
 * blk_write_gate_close() makes new ones wait, and blk_write_gate_drain() waits for
 * those let through.
 *
 * To count a write, our completion is put in the place of its submitter's, which
 * bio_endio() takes away again.  That is also the mark by which the remainder of a
 * split write, and one that a driver submits again, are known when they come by a
 * second time: they are covered by the count that they carry.
 *
 * Not a percpu_ref: to kill that takes a grace period of RCU, for which the
 * device would stand still.
 *
 * Locks: gate->lock is a leaf, and not taken in interrupts.
 */
#include <linux/bio.h>
#include <linux/blk-filter.h>
#include <linux/blk-mq.h>
#include <linux/mempool.h>
#include <linux/part_stat.h>
#include <linux/percpu.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
#include "blk-filter.h"

/* Counted writes of a disk that make progress whatever the state of memory. */
#define BLK_WRITE_GATE_POOL_SIZE	64

/**
 * struct blk_write_gate - the write gate of a bio based disk
 * @pool: of struct blk_counted_write; one for each disk, as the writes of one may
 *	wait for those of another below it
 * @writes: writes let through and not completed: the sum of all processors
 * @uncounted: writes that began while no filter was attached may be in flight
 * @wait: woken when a write is completed while the gate is closed
 * @closed: number of blk_write_gate_close() not yet undone
 * @lock: protects @waiting and changes of @closed
 * @waiting: writes that wait for the gate to open, or for memory
 * @release_work: resubmits @waiting
 */
struct blk_write_gate {
	mempool_t pool;
	unsigned long __percpu *writes;
	bool uncounted;
	wait_queue_head_t wait;
	unsigned int closed;
	spinlock_t lock;	/* protects waiting and changes of closed */
	struct bio_list waiting;
	struct delayed_work release_work;
};

/* What a counted write's completion was before we put ours in its place. */
struct blk_counted_write {
	struct blk_write_gate *gate;
	bio_end_io_t *end_io;
	void *private;
};

static struct workqueue_struct *blk_write_gate_wq;

static void blk_write_gate_release_workfn(struct work_struct *work)
{
	struct blk_write_gate *gate = container_of(to_delayed_work(work),
						   struct blk_write_gate,
						   release_work);
	struct bio_list bios = BIO_EMPTY_LIST;
	struct bio *bio;

	spin_lock(&gate->lock);
	if (!gate->closed) {
		bios = gate->waiting;
		bio_list_init(&gate->waiting);
	}
	spin_unlock(&gate->lock);

	while ((bio = bio_list_pop(&bios)))
		blk_front_resubmit(bio);
}

struct blk_write_gate *blk_write_gate_alloc(void)
{
	struct blk_write_gate *gate = kzalloc(sizeof(*gate), GFP_KERNEL);

	if (!gate)
		return NULL;
	gate->writes = alloc_percpu(unsigned long);
	if (!gate->writes)
		goto free_gate;
	if (mempool_init_kmalloc_pool(&gate->pool, BLK_WRITE_GATE_POOL_SIZE,
				      sizeof(struct blk_counted_write)))
		goto free_writes;
	init_waitqueue_head(&gate->wait);
	spin_lock_init(&gate->lock);
	INIT_DELAYED_WORK(&gate->release_work, blk_write_gate_release_workfn);
	return gate;

free_writes:
	free_percpu(gate->writes);
free_gate:
	kfree(gate);
	return NULL;
}

void blk_write_gate_free(struct blk_write_gate *gate)
{
	if (!gate)
		return;
	cancel_delayed_work_sync(&gate->release_work);
	mempool_exit(&gate->pool);
	free_percpu(gate->writes);
	kfree(gate);
}

/* The first filter is being attached: what is in flight already is not counted. */
void blk_write_gate_begin(struct blk_write_gate *gate)
{
	if (gate)
		gate->uncounted = true;
}

/*
 * A counted write has been completed: bio_endio() goes on with the completion of
 * its submitter.
 */
void blk_write_gate_leave(struct bio *bio)
{
	struct blk_counted_write *write = bio->bi_private;
	struct blk_write_gate *gate = write->gate;

	bio->bi_end_io = write->end_io;
	bio->bi_private = write->private;
	mempool_free(write, &gate->pool);

	/* Who reads a sum of zero after this sees the data of the write. */
	smp_mb();
	this_cpu_dec(*gate->writes);
	/* Who waits either sees the new sum, or has set closed before. */
	smp_mb();
	/* The disk, and so the gate, cannot go before the bio was ended. */
	if (READ_ONCE(gate->closed))
		wake_up(&gate->wait);
}

/* The mark of a counted write.  Called by who calls bi_end_io past bio_endio(). */
void blk_write_gate_end_io(struct bio *bio)
{
	blk_write_gate_leave(bio);
	blk_front_end_chain(bio);
	bio_endio(bio);
}

/*
 * Whether all counted writes have been completed.  To be called with the gate
 * closed and all that came before it counted: so nothing is added beside us,
 * what is subtracted beside us makes the sum too large at the worst, and zero
 * means zero.
 */
static bool blk_write_gate_drained(struct blk_write_gate *gate)
{
	unsigned long writes = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		writes += READ_ONCE(*per_cpu_ptr(gate->writes, cpu));
	/* Pairs with the first barrier in blk_write_gate_leave(). */
	smp_mb();
	return !writes;
}

/* Whether an open gate neither counts a write nor has one that waits. */
bool blk_write_gate_idle(struct blk_write_gate *gate)
{
	bool idle;

	spin_lock(&gate->lock);
	idle = !gate->closed && bio_list_empty(&gate->waiting);
	spin_unlock(&gate->lock);
	return idle && !delayed_work_pending(&gate->release_work) &&
	       blk_write_gate_drained(gate);
}

static bool blk_write_gate_covers(struct blk_write_gate *gate, struct bio *bio)
{
	struct blk_counted_write *write = bio->bi_private;

	/* A driver may have sent on a bio that was counted for its own disk. */
	return bio->bi_end_io == blk_write_gate_end_io && write->gate == gate;
}

/*
 * Count a write that is about to be handed to a bio based driver.  Returns false
 * if it has to wait, or was ended, instead.
 */
bool blk_write_gate_enter(struct blk_write_gate *gate, struct bio *bio)
{
	struct blk_counted_write *write = NULL;

	if (blk_write_gate_covers(gate, bio))
		return true;

	/*
	 * The gate closes while the queue is frozen, so not beside us.  It may
	 * open beside us, hence the second look under the lock.
	 */
	if (!data_race(gate->closed))
		write = mempool_alloc(&gate->pool, GFP_NOWAIT | __GFP_NOWARN);
	if (!write) {
		if (bio->bi_opf & REQ_NOWAIT) {
			bio_wouldblock_error(bio);
			return false;
		}
		spin_lock(&gate->lock);
		bio_list_add(&gate->waiting, bio);
		if (!gate->closed)
			queue_delayed_work(blk_write_gate_wq,
					   &gate->release_work, 1);
		spin_unlock(&gate->lock);
		return false;
	}

	write->gate = gate;
	write->end_io = bio->bi_end_io;
	write->private = bio->bi_private;
	bio->bi_end_io = blk_write_gate_end_io;
	bio->bi_private = write;
	/* A polling submitter would look for its own bi_private. */
	bio_clear_polled(bio);
	this_cpu_inc(*gate->writes);
	return true;
}

static struct blk_write_gate *bdev_write_gate(struct block_device *bdev)
{
	struct blk_filter_disk *fd = blk_front_disk(bdev->bd_disk);

	return fd ? fd->gate : NULL;
}

/*
 * Writes that entered a bio based driver before there was a filter to count them
 * are known from the driver's I/O accounting only, which cannot be waited on.
 */
static bool blk_write_gate_wait_uncounted(struct gendisk *disk,
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
 * blk_write_gate_close - stop the writes of a device
 * @bdev: a device that has a filter attached, held open by the caller
 * @timeout: how long to wait for those who are in the driver, in jiffies
 *
 * Only bio based disks need this and are affected: on return their new writes
 * wait; blk_write_gate_drain() waits for those let through before.  For request
 * based ones freezing the queue does both.
 *
 * Context: May sleep; freezes the queue for a moment, within @timeout: who is in
 * the driver may wait for another device that is stopped.
 * Return: 0, or -ETIMEDOUT; then the gate is open.
 */
int blk_write_gate_close(struct block_device *bdev, unsigned long timeout)
{
	struct gendisk *disk = bdev->bd_disk;
	struct blk_write_gate *gate = bdev_write_gate(bdev);
	unsigned int memflags;
	long left;

	if (!gate)
		return 0;

	memflags = memalloc_noio_save();
	blk_freeze_queue_start(disk->queue);
	left = blk_mq_freeze_queue_wait_timeout(disk->queue, timeout);
	if (left > 0) {
		spin_lock(&gate->lock);
		WRITE_ONCE(gate->closed, gate->closed + 1);
		spin_unlock(&gate->lock);
	}
	blk_mq_unfreeze_queue(disk->queue, memflags);
	return left > 0 ? 0 : -ETIMEDOUT;
}
EXPORT_SYMBOL_GPL(blk_write_gate_close);

/**
 * blk_write_gate_drain - wait for the writes that a closed gate had let through
 * @bdev: the device, of which the caller has closed the gate
 * @timeout: how long to wait, in jiffies
 *
 * On return the driver has completed them.  Writes from before the first filter
 * was attached are found by the driver's accounting; what that misses is not
 * waited for, see Documentation/block/blk-filter.rst.
 *
 * Context: May sleep.
 * Return: 0, or -ETIMEDOUT; the gate stays closed.
 */
int blk_write_gate_drain(struct block_device *bdev, unsigned long timeout)
{
	struct blk_write_gate *gate = bdev_write_gate(bdev);
	unsigned long deadline = jiffies + timeout;

	if (!gate)
		return 0;
	if (!wait_event_timeout(gate->wait, blk_write_gate_drained(gate), timeout))
		return -ETIMEDOUT;
	if (gate->uncounted) {
		if (!blk_write_gate_wait_uncounted(bdev->bd_disk, deadline))
			return -ETIMEDOUT;
		gate->uncounted = false;
	}
	return 0;
}
EXPORT_SYMBOL_GPL(blk_write_gate_drain);

/**
 * blk_write_gate_open - undo blk_write_gate_close()
 * @bdev: the device
 *
 * The writes that waited go on in a work item: the caller may have stopped the
 * device that they are for.
 *
 * Context: May sleep.
 */
void blk_write_gate_open(struct block_device *bdev)
{
	struct blk_write_gate *gate = bdev_write_gate(bdev);

	if (!gate)
		return;
	spin_lock(&gate->lock);
	WRITE_ONCE(gate->closed, gate->closed - 1);
	if (!gate->closed && !bio_list_empty(&gate->waiting))
		mod_delayed_work(blk_write_gate_wq, &gate->release_work, 0);
	spin_unlock(&gate->lock);
}
EXPORT_SYMBOL_GPL(blk_write_gate_open);

/* Called by the front, before there is a gate. */
int blk_write_gate_setup(void)
{
	blk_write_gate_wq = alloc_workqueue("blk_write_gate",
					    WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return blk_write_gate_wq ? 0 : -ENOMEM;
}

/* Called when there is no gate any more, if the front ever ends. */
void blk_write_gate_end(void)
{
	destroy_workqueue(blk_write_gate_wq);
}
