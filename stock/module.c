// SPDX-License-Identifier: GPL-2.0
/*
 * The module's beginning and end, around those of the driver.
 *
 * The kernel crate is a part of the module here, and so is the code of the work that it
 * leaves to be done later.  In a kernel that has it that is done by a workqueue of the
 * system, which may do it after the driver has gone.  Here it has a workqueue of its
 * own, which ends with the module.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bits.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/workqueue.h>
#include "stock.h"
#include "../src/base/params.h"

/* The interface of 2025, by its place in src/base/params.c: it has ioctls of devices. */
#define FRONTEND_V2	BIT(1)

struct workqueue_struct *stock_dfl_wq;

static int __init stock_init(void)
{
	int ret;

	stock_dfl_wq = alloc_workqueue("blksnap", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!stock_dfl_wq)
		return -ENOMEM;
	if (blksnap_frontends & FRONTEND_V2) {
		ret = stock_ioctl_hook();
		if (ret) {
			pr_err("with frontends=v1 it is not needed\n");
			goto destroy_wq;
		}
	}
	ret = driver_init_module();
	if (!ret)
		return 0;
	stock_end();
	stock_ioctl_unhook();
destroy_wq:
	destroy_workqueue(stock_dfl_wq);
	return ret;
}

static void __exit stock_exit(void)
{
	driver_cleanup_module();
	stock_ioctl_unhook();
	/* No filter is attached any more, and nothing stays hooked. */
	stock_end();
	destroy_workqueue(stock_dfl_wq);
}

module_init(stock_init);
module_exit(stock_exit);

/* The driver's part of the module has the rest, and its version. */
MODULE_INFO(flavour, "stock");
MODULE_INFO(package, BLKSNAP_PACKAGE);
