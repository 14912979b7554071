/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Block filters: see each bio of a block device before its driver does.
 *
 * See Documentation/block/blk-filter.rst and block/blk-filter.c.
 */
#ifndef _LINUX_BLK_FILTER_H
#define _LINUX_BLK_FILTER_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/blk-mq.h>
#include <linux/blk_types.h>
#include <linux/completion.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/wait.h>

struct blk_filter;
struct blk_filter_disk;
struct module;

/* Masks for &blk_filter_operations.op_mask: all operations; those that are op_is_write(). */
#define BLK_FILTER_ALL		((u64)~0ULL)
#define BLK_FILTER_WRITES	((u64)0xaaaaaaaaaaaaaaaaULL)

/**
 * struct blk_filter_operations - what a filter does
 * @name: Shown in the "filters" attribute of the device.
 * @owner: The module that has the callbacks.  It may be unloaded with filters
 *	attached, and has to detach them when it exits: those that it forgets
 *	are taken off, with a message, before its code is freed.
 * @op_mask: BIT_ULL() of each &enum req_op whose bios are shown to @submit_bio.
 * @submit_bio: Decides about a bio that is about to be handed to the driver.
 *	The bio has data (empty flushes are not shown), overlaps the filtered
 *	device, and its sector is relative to the whole disk.  Returns false to
 *	let the bio go on, true if the filter took it: it has then ended the
 *	bio, or called blk_filter_hold() and calls blk_filter_resubmit() later.
 *
 *	Called in process context with a reference on the queue's usage
 *	counter, or inside of what its front stops first (see
 *	blk_filter_freeze_wait()), so that a frozen queue means that no bio is
 *	between a filter's decision and the driver.  For the same reason the
 *	callback must not wait for I/O or for a lock that is held across I/O or
 *	a queue freeze.  I/O that it submits is queued on current->bio_list.
 *
 *	A decision is valid for this pass only.  A resubmitted bio, and each
 *	remainder of a bio that the driver's limits split, is shown again:
 *	between two passes the queue may have been frozen and the filter's
 *	state changed.  Decisions must therefore be idempotent.
 * @resized: The capacity of the disk is about to change from @old to @new
 *	sectors; 0 means that there is no medium.  For a filter on a partition,
 *	too, it is the capacity of the disk.  Optional.
 *
 *	Called by set_capacity(), before the new capacity can be seen.  Some
 *	drivers do that with interrupts off, under a lock, or with the queue
 *	frozen, and bios may be in flight meanwhile.  So this is atomic
 *	context, with a spinlock of the filters held: the callback may use
 *	atomics, locks that are safe in hard interrupts, and queue work; it
 *	must not call any blk_filter function.
 * @replaced: The disk is about to get other data, without a bio: another table of
 *	device mapper, another offset of a loop device, and the same of a disk
 *	that this one is made of.  For a filter on a partition, too.  Nothing
 *	that was known of the data holds any more.  Optional.
 *
 *	Called before that data can be read, in the same context as @resized.
 * @gone: The device is being removed.  The last bios may still be shown until
 *	the filter is taken off right after, and after that pass unseen; held
 *	bios must be resubmitted as usual.  Called once, in process context,
 *	with the mutex of the disk's filters held and, but for a whole disk in a
 *	patched kernel, disk->open_mutex.  So it may sleep, but must neither open or close the
 *	device, nor attach or detach a filter of that disk, nor wait for
 *	somebody who does.  The owner must still call blk_filter_detach().
 *	Optional.
 */
struct blk_filter_operations {
	const char *name;
	struct module *owner;
	u64 op_mask;
	bool (*submit_bio)(struct blk_filter *flt, struct bio *bio);
	void (*resized)(struct blk_filter *flt, sector_t old, sector_t new);
	void (*replaced)(struct blk_filter *flt);
	void (*gone)(struct blk_filter *flt);
};

/**
 * struct blk_filter - a filter attached to one block device
 * @ops: the filter's operations
 * @bdev: the device, NULL when not attached or when the device has gone
 * @sectors: the largest size that it has had since the filter was attached
 * @node: entry in the disk's list of filters
 * @held: number of bios the filter holds
 * @wait: woken when @held drops to zero
 *
 * All of it is private to block/blk-filter.c.
 */
struct blk_filter {
	const struct blk_filter_operations *ops;
	struct block_device *bdev;
	sector_t sectors;
	struct list_head node;
	atomic_t held;
	wait_queue_head_t wait;
};

/**
 * struct blk_filter_type - how user space attaches and controls filters by name
 * @name: That of the filters, and of the type: what clients give to the ioctls of
 *	<uapi/linux/blk-filter.h> on the block device.
 * @attach: Attach a filter to the device.  @opt and @optlen are the client's.
 * @detach: Detach it.
 * @ctl: A command to the filter that is attached.  @opt is an address in user space,
 *	of @optlen bytes as laid out by 32-bit programs if @compat.
 *
 * The callbacks are made for a client that has the device open, with no locks, and
 * return 0 or an error.  Only clients with CAP_SYS_ADMIN get there.
 */
struct blk_filter_type {
	const char *name;
	int (*attach)(struct blk_filter_type *type, struct block_device *bdev,
		      u64 opt, u32 optlen);
	int (*detach)(struct blk_filter_type *type, struct block_device *bdev);
	int (*ctl)(struct blk_filter_type *type, struct block_device *bdev,
		   u32 cmd, u64 opt, u32 optlen, bool compat);
	/* private: to block/blk-filter-type.c */
	struct list_head node;
	refcount_t users;
	struct completion unused;
};

/**
 * struct blk_filter_freeze - the freeze of a queue whose disk may have filters
 * @q: the queue
 * @fd: where the bios of the disk are stopped before they reach the queue; else NULL
 * @frozen: the queue is frozen
 *
 * Filled in by blk_filter_freeze_start(); may be moved.
 */
struct blk_filter_freeze {
	struct request_queue *q;
	struct blk_filter_disk *fd;
	bool frozen;
};

#ifdef CONFIG_BLK_FILTER_STOCK
/* Filters see bios before they enter the queue: see stock/freeze.c. */
void blk_filter_freeze_start(struct blk_filter_freeze *freeze,
			     struct request_queue *q);
bool blk_filter_freeze_wait(struct blk_filter_freeze *freeze,
			    unsigned long timeout);
void blk_filter_freeze_end(struct blk_filter_freeze *freeze);
#elif defined(CONFIG_BLOCK)
/*
 * Filters see bios that have entered the queue: so these are what freezes any queue.
 * Begin with memalloc_noio_save(); MAX_SCHEDULE_TIMEOUT is forever.
 */
static inline void blk_filter_freeze_start(struct blk_filter_freeze *freeze,
					   struct request_queue *q)
{
	*freeze = (struct blk_filter_freeze){ .q = q };
	blk_freeze_queue_start(q);
}

/* Whether nobody is in the queue any more; if not, the freeze goes on. */
static inline bool blk_filter_freeze_wait(struct blk_filter_freeze *freeze,
					  unsigned long timeout)
{
	if (timeout == MAX_SCHEDULE_TIMEOUT)
		blk_mq_freeze_queue_wait(freeze->q);
	else if (!blk_mq_freeze_queue_wait_timeout(freeze->q, timeout))
		return false;
	freeze->frozen = true;
	return true;
}

/* Undoes blk_filter_freeze_start(), whether or not somebody waited. */
static inline void blk_filter_freeze_end(struct blk_filter_freeze *freeze)
{
	blk_mq_unfreeze_queue_nomemrestore(freeze->q);
}
#endif

#ifdef CONFIG_BLK_FILTER
int blk_filter_register(struct blk_filter_type *type);
void blk_filter_unregister(struct blk_filter_type *type);

int blk_filter_check(struct block_device *bdev);
int blk_filter_attach(struct blk_filter *flt, struct block_device *bdev,
		      const struct blk_filter_operations *ops);
void blk_filter_detach(struct blk_filter *flt);
void blk_filter_replace_data(struct gendisk *disk);
bool blk_filter_bio_has(struct bio *bio, const void *mark, size_t len);
bool blk_filter_sees_writes(struct block_device *bdev, struct gendisk *disk);
u64 blk_filter_diskseq(struct blk_filter *flt);
void blk_filter_hold(struct blk_filter *flt, struct bio *bio);
void blk_filter_resubmit(struct blk_filter *flt, struct bio *bio);

int blk_write_gate_close(struct block_device *bdev, unsigned long timeout);
int blk_write_gate_drain(struct block_device *bdev, unsigned long timeout);
void blk_write_gate_open(struct block_device *bdev);
#else /* CONFIG_BLK_FILTER */
static inline void blk_filter_replace_data(struct gendisk *disk)
{
}
#endif /* CONFIG_BLK_FILTER */

#endif /* _LINUX_BLK_FILTER_H */
