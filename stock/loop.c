// SPDX-License-Identifier: GPL-2.0
/*
 * Loop devices: LOOP_SET_STATUS may let one begin elsewhere in its file.  Another file
 * is another medium already, by the sequence number of the disk.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/major.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <uapi/linux/loop.h>
#include "stock.h"

struct loop_device;

/*
 * Between the look at the offset and the change nobody else is to change it.  Taken in
 * the wrapper only, with no lock of the driver held, and no bio waits for it.
 */
static DEFINE_MUTEX(stock_loop_mutex);

static int no_loop_get_status(struct loop_device *lo, struct loop_info64 *info)
{
	return -ENXIO;
}

static int no_loop_set_status(struct loop_device *lo,
			      const struct loop_info64 *info)
{
	return -ENXIO;
}

STOCK_CALL(loop_get_status, no_loop_get_status)
STOCK_BODY(loop_set_status, no_loop_set_status)

static bool drives_loop(struct gendisk *disk)
{
	return disk->major == LOOP_MAJOR;
}

static void stock_loop_replace(struct loop_device *lo)
{
	struct class_dev_iter iter;
	struct device *dev;

	stock_disk_iter_init(&iter);
	while ((dev = class_dev_iter_next(&iter))) {
		struct gendisk *disk = dev_to_disk(dev);

		if (drives_loop(disk) && disk->private_data == lo)
			blk_filter_replace_data(disk);
	}
	class_dev_iter_exit(&iter);
}

static int notrace wrap_loop_set_status(struct loop_device *lo,
					const struct loop_info64 *info)
{
	struct loop_info64 *old;
	int ret;

	stock_count_in(&stock_tasks);
	mutex_lock(&stock_loop_mutex);
	/* When in doubt the data is other. */
	old = kzalloc_obj(*old, GFP_NOIO);
	if (!old || (static_call(loop_get_status_body)(lo, old) != -ENXIO &&
		     old->lo_offset != info->lo_offset))
		stock_loop_replace(lo);
	kfree(old);
	ret = static_call(loop_set_status_body)(lo, info);
	mutex_unlock(&stock_loop_mutex);
	stock_count_out(&stock_tasks);
	return ret;
}

STOCK_REDIRECT(loop_set_status);

const struct stock_replacing stock_loop = {
	.hook = &hook_loop_set_status,
	.find = find_loop_get_status,
	.drives = drives_loop,
};
