// SPDX-License-Identifier: GPL-2.0
/*
 * What keeps the stock flavour from hooking a function, for tests/vm.d/95-stock: somebody
 * else redirects the function that the parameter names, as a live patch does; and the disk
 * "untraced" is of a driver whose function cannot be traced.
 */
#include <linux/blkdev.h>
#include <linux/ftrace.h>
#include <linux/module.h>

static char *redirected;
module_param(redirected, charp, 0444);
MODULE_PARM_DESC(redirected, "A function to redirect, to where it goes anyway");

static void notrace redirect(unsigned long ip, unsigned long parent_ip,
			     struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
}

static struct ftrace_ops ops = {
	.func = redirect,
	.flags = FTRACE_OPS_FL_IPMODIFY,
};

static void notrace untraced_submit_bio(struct bio *bio)
{
	bio_endio(bio);
}

static const struct block_device_operations untraced_fops = {
	.owner = THIS_MODULE,
	.submit_bio = untraced_submit_bio,
};

static struct gendisk *untraced;

static int __init obstacle_init(void)
{
	int ret = 0;

	if (redirected) {
		ret = ftrace_set_filter(&ops, redirected, strlen(redirected), 1);
		if (!ret)
			ret = register_ftrace_function(&ops);
		if (ret)
			return ret;
	}
	untraced = blk_alloc_disk(NULL, NUMA_NO_NODE);
	if (IS_ERR(untraced)) {
		ret = PTR_ERR(untraced);
		goto unregister;
	}
	untraced->fops = &untraced_fops;
	strscpy(untraced->disk_name, "untraced");
	set_capacity(untraced, 1 << 14);
	ret = add_disk(untraced);
	if (!ret)
		return 0;
	put_disk(untraced);
unregister:
	if (redirected)
		unregister_ftrace_function(&ops);
	return ret;
}

static void __exit obstacle_exit(void)
{
	del_gendisk(untraced);
	put_disk(untraced);
	if (redirected)
		unregister_ftrace_function(&ops);
}

module_init(obstacle_init);
module_exit(obstacle_exit);
MODULE_DESCRIPTION("What keeps functions from being hooked, for tests");
MODULE_LICENSE("GPL");
