// SPDX-License-Identifier: GPL-2.0
/*
 * Which disk is made of which, as sysfs shows it in "slaves".
 *
 * The list that the block layer has of that is protected by a mutex of its own, which
 * cannot be reached from here.
 */
#include <linux/kernfs.h>
#include <linux/rwsem.h>
#include <linux/string.h>
#include "stock.h"

/*
 * The directory of a disk that is live stays as long as this is held for reading.  Taken
 * with disk->open_mutex held, for writing; inside of it are only locks of kernfs.
 */
static DECLARE_RWSEM(stock_holder_sem);

/**
 * stock_holder_wait - wait for those who look at disks of which one is live no more
 *
 * Context: Process context.
 */
void stock_holder_wait(void)
{
	down_write(&stock_holder_sem);
	up_write(&stock_holder_sem);
}

/* The name in sysfs of a disk's next partition; 0 is the disk itself. */
static bool stock_part_name(struct gendisk *disk, unsigned long *partno,
			    char *name, size_t size)
{
	struct block_device *part;

	rcu_read_lock();
	part = xa_find(&disk->part_tbl, partno, ULONG_MAX, XA_PRESENT);
	if (part)
		snprintf(name, size, "%pg", part);
	rcu_read_unlock();
	strreplace(name, '/', '!');
	return part;
}

bool blk_front_holds(struct gendisk *disk, struct block_device *slave)
{
	struct gendisk *whole = slave->bd_disk;
	char name[DISK_NAME_LEN + 16] = "";
	struct kernfs_node *link;
	unsigned long partno;
	bool holds = false;

	down_read(&stock_holder_sem);
	if (!disk_live(disk) || !disk->slave_dir)
		goto unlock;
	for (partno = 0; stock_part_name(whole, &partno, name, sizeof(name));
	     partno++) {
		/* Partitions have no sectors in common with each other. */
		if (bdev_is_partition(slave) && partno &&
		    partno != bdev_partno(slave))
			continue;
		link = kernfs_find_and_get(disk->slave_dir->sd, name);
		if (link) {
			holds = true;
			kernfs_put(link);
			break;
		}
	}
unlock:
	up_read(&stock_holder_sem);
	return holds;
}
