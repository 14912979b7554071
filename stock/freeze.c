// SPDX-License-Identifier: GPL-2.0
/*
 * Freezing queues of disks that may have filters: the gate first, then the queue.
 *
 * Of several devices all gates are closed before the first of them is waited for, as
 * in a patched kernel all freezes are begun first.
 */
#include <linux/blk-mq.h>
#include "stock.h"

/**
 * blk_filter_freeze_start - begin to freeze a queue
 * @freeze: the freeze
 * @q: the queue of a disk that is held open, or is not yet removed
 *
 * Context: Process context, between memalloc_noio_save() and its end; may sleep.
 */
void blk_filter_freeze_start(struct blk_filter_freeze *freeze,
			     struct request_queue *q)
{
	struct stock_disk *sd = stock_disk_find(q->disk);

	*freeze = (struct blk_filter_freeze){ .q = q };
	if (sd && !stock_disk_is_bio_based(sd)) {
		/* So it is not freed before it is open again. */
		stock_gate_close(&sd->gate);
		freeze->fd = &sd->fd;
	} else {
		blk_freeze_queue_start(q);
		freeze->frozen = true;
	}
}

/**
 * blk_filter_freeze_wait - wait until the queue is frozen
 * @freeze: the freeze
 * @timeout: how long, in jiffies; MAX_SCHEDULE_TIMEOUT is forever
 *
 * Context: Process context; sleeps.
 * Return: Whether nobody is in the queue, or on the way from a filter to it.  If not,
 * no bio enters until blk_filter_freeze_end().
 */
bool blk_filter_freeze_wait(struct blk_filter_freeze *freeze,
			    unsigned long timeout)
{
	if (freeze->fd) {
		timeout = stock_gate_drain(&to_stock_disk(freeze->fd)->gate,
					   timeout);
		if (!timeout)
			return false;
		blk_freeze_queue_start(freeze->q);
		freeze->frozen = true;
	}
	return blk_mq_freeze_queue_wait_timeout(freeze->q, timeout);
}

/**
 * blk_filter_freeze_end - undo blk_filter_freeze_start()
 * @freeze: the freeze, whether or not somebody waited for it
 *
 * Context: Process context.
 */
void blk_filter_freeze_end(struct blk_filter_freeze *freeze)
{
	if (freeze->frozen)
		blk_mq_unfreeze_queue_nomemrestore(freeze->q);
	if (freeze->fd)
		stock_gate_open(&to_stock_disk(freeze->fd)->gate);
}
