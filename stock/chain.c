// SPDX-License-Identifier: GPL-2.0
/*
 * The end of counted writes that end each other.
 *
 * bio_endio() walks a chain of bios, of which each ends the next one, as long as it
 * finds bio_chain()'s completion.  Where it finds ours instead it calls that, which
 * calls bio_endio() again: once for each bio of the chain, of which there may be
 * thousands (discards).  So ours is taken away in time from those that are about to
 * end.
 */
#include <linux/bio.h>
#include "stock.h"

/* What bio_chain() marks a bio with; only to be compared. */
static bio_end_io_t *stock_chain_mark;

/**
 * stock_chain_setup - find out how chained bios are marked
 *
 * Context: Any.
 */
void stock_chain_setup(void)
{
	struct bio first = { }, next = { };

	bio_chain(&first, &next);
	stock_chain_mark = first.bi_end_io;
}

/*
 * If one ends that another one waits for, and only for it, then that has been done by
 * its driver, too.
 */
void blk_front_end_chain(struct bio *bio)
{
	while (bio->bi_end_io == stock_chain_mark) {
		bio = bio->bi_private;
		if (atomic_read(&bio->__bi_remaining) != 1)
			break;
		/* Nobody else looks at it any more: pairs with their decrements. */
		smp_acquire__after_ctrl_dep();
		while (bio->bi_end_io == blk_write_gate_end_io)
			blk_write_gate_leave(bio);
	}
}
