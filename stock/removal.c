// SPDX-License-Identifier: GPL-2.0
/*
 * Disks and partitions that go, or get another size.
 *
 * bdev_unhash() is called for each of them with disk->open_mutex held, before anything
 * else is taken away from it, and for a disk before its partitions; after it
 * disk_live() is false.  bdev_set_nr_sectors() is where all changes of a size end.
 */
#include "stock.h"

static void no_bdev_unhash(struct block_device *bdev)
{
}

STOCK_BODY(bdev_unhash, no_bdev_unhash)

static void notrace wrap_bdev_unhash(struct block_device *bdev)
{
	bool whole = !bdev_is_partition(bdev);

	stock_count_in(&stock_tasks);
	blk_filter_remove(bdev->bd_disk, whole ? NULL : bdev, NULL);
	static_call(bdev_unhash_body)(bdev);
	if (whole)
		stock_holder_wait();
	stock_count_out(&stock_tasks);
}

STOCK_REDIRECT(bdev_unhash);

static void notrace look_bdev_set_nr_sectors(unsigned long ip,
					     unsigned long parent_ip,
					     struct ftrace_ops *ops,
					     struct ftrace_regs *fregs)
{
	struct block_device *bdev = (void *)ftrace_regs_get_argument(fregs, 0);
	sector_t sectors = ftrace_regs_get_argument(fregs, 1);

	if (bdev_is_partition(bdev))
		blk_filter_resize_part(bdev, sectors);
	else
		blk_filter_resize_disk(bdev->bd_disk, sectors);
}

static struct stock_hook hook_bdev_set_nr_sectors = {
	.name = "bdev_set_nr_sectors",
	.ops = {
		.func = look_bdev_set_nr_sectors,
		.flags = FTRACE_OPS_FL_PERMANENT,
	},
};

static void notrace look_disk_release(unsigned long ip, unsigned long parent_ip,
				      struct ftrace_ops *ops,
				      struct ftrace_regs *fregs)
{
	struct device *dev = (void *)ftrace_regs_get_argument(fregs, 0);

	stock_disk_forget(dev_to_disk(dev));
}

static struct stock_hook hook_disk_release = {
	.name = "disk_release",
	.ops = {
		.func = look_disk_release,
		.flags = FTRACE_OPS_FL_PERMANENT,
	},
};

/**
 * stock_removal_hook - begin to watch disks and partitions
 * @disk: any disk, which knows how all are released
 *
 * Context: Process context.
 * Return: 0, or as stock_hook_at().
 */
int stock_removal_hook(struct gendisk *disk)
{
	int ret;

	ret = stock_hook_at(&hook_disk_release,
			    stock_find(NULL, disk_to_dev(disk)->type->release));
	if (!ret)
		ret = stock_hook(&hook_bdev_set_nr_sectors);
	if (!ret)
		ret = stock_hook(&hook_bdev_unhash);
	if (ret)
		stock_removal_unhook();
	return ret;
}

/**
 * stock_removal_unhook - end that
 *
 * Context: Process context.
 */
void stock_removal_unhook(void)
{
	stock_unhook(&hook_bdev_unhash);
	stock_unhook(&hook_bdev_set_nr_sectors);
	stock_unhook(&hook_disk_release);
}
