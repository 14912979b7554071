// SPDX-License-Identifier: GPL-2.0
/*
 * The module's beginning and end, around those of the driver.
 *
 * The kernel crate is a part of the module here, and so is the code of the work that it
 * leaves to be done later.  In a kernel that has it that is done by a workqueue of the
 * system, which may do it after the driver has gone.  Here it has a workqueue of its
 * own, which ends with the module.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/workqueue.h>
#include "stock.h"

struct workqueue_struct *stock_dfl_wq;

static int __init stock_init(void)
{
	int ret;

	stock_dfl_wq = alloc_workqueue("blksnap", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!stock_dfl_wq)
		return -ENOMEM;
	ret = driver_init_module();
	if (ret) {
		stock_end();
		destroy_workqueue(stock_dfl_wq);
	}
	return ret;
}

static void __exit stock_exit(void)
{
	driver_cleanup_module();
	/* No filter is attached any more, and nothing stays hooked. */
	stock_end();
	destroy_workqueue(stock_dfl_wq);
}

module_init(stock_init);
module_exit(stock_exit);
