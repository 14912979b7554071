// SPDX-License-Identifier: GPL-2.0
/*
 * The ioctls by which user space attaches and controls filters.
 *
 * The kernel does not know them.  Each of its two functions for ioctls of block devices
 * is hooked; a call with one of these commands ends up here, any other one is not
 * touched.
 */
#include <linux/compat.h>
#include "stock.h"

/* Tasks in stock_ioctl(). */
static struct stock_count stock_ioctl_tasks;

/* In the place of the kernel's function. */
static long notrace stock_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *argp = (void __user *)arg;
	long ret;

	stock_count_in(&stock_ioctl_tasks);
	if (in_compat_syscall())
		argp = compat_ptr(arg);
	ret = blk_filter_ioctl(file_bdev(file), cmd, argp);
	stock_count_out(&stock_ioctl_tasks);
	return ret;
}

static bool stock_ioctl_is_ours(unsigned int cmd)
{
	switch (cmd) {
	case BLKFILTER_ATTACH:
	case BLKFILTER_DETACH:
	case BLKFILTER_CTL:
		return true;
#ifdef CONFIG_COMPAT_FOR_U64_ALIGNMENT
	case BLKFILTER_ATTACH_32:
		return in_compat_syscall();
#endif
	}
	return false;
}

static void notrace redirect_ioctl(unsigned long ip, unsigned long parent_ip,
				   struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	if (stock_ioctl_is_ours(ftrace_regs_get_argument(fregs, 1)))
		ftrace_regs_set_instruction_pointer(fregs, (unsigned long)stock_ioctl);
}

static struct stock_hook stock_ioctls[] = {
	{
		.name = "blkdev_ioctl",
		.ops = { .func = redirect_ioctl, .flags = STOCK_REDIRECT_FLAGS },
	},
#ifdef CONFIG_COMPAT
	{
		.name = "compat_blkdev_ioctl",
		.ops = { .func = redirect_ioctl, .flags = STOCK_REDIRECT_FLAGS },
	},
#endif
};

/**
 * stock_ioctl_hook - begin to serve these ioctls
 *
 * Context: Process context.
 * Return: 0, -ENOMEM, or as stock_hook_at().
 */
int stock_ioctl_hook(void)
{
	unsigned int i;
	int ret = stock_count_init(&stock_ioctl_tasks);

	for (i = 0; !ret && i < ARRAY_SIZE(stock_ioctls); i++)
		ret = stock_hook(&stock_ioctls[i]);
	if (ret)
		stock_ioctl_unhook();
	return ret;
}

/**
 * stock_ioctl_unhook - end that
 *
 * Nothing is done if it was not begun.
 *
 * Context: Process context; waits for those that have begun.
 */
void stock_ioctl_unhook(void)
{
	unsigned int i;

	if (!stock_ioctl_tasks.in)
		return;
	for (i = 0; i < ARRAY_SIZE(stock_ioctls); i++)
		stock_unhook(&stock_ioctls[i]);
	stock_count_wait(&stock_ioctl_tasks, MAX_SCHEDULE_TIMEOUT);
	stock_count_free(&stock_ioctl_tasks);
}
