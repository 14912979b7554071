// SPDX-License-Identifier: GPL-2.0
/*
 * Disks that get other data without a bio: see dm.c and loop.c.
 *
 * Both drivers may be modules, which come and go, and so do their hooks.  Where one cannot
 * be hooked, its disks get no filter: that would not be told of other data.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include "stock.h"

/*
 * Held while these hooks come and go.  Taken with the lock of the module notifiers, or
 * with stock_mutex held.
 */
static DEFINE_MUTEX(stock_replaced_mutex);

static const struct stock_replacing *const stock_replacing[] = {
	&stock_dm, &stock_loop,
};

/**
 * stock_replaced_hook - watch the drivers that there are
 *
 * Context: Process context.  May be called again, when there are more.
 */
void stock_replaced_hook(void)
{
	unsigned int i;

	mutex_lock(&stock_replaced_mutex);
	for (i = 0; i < ARRAY_SIZE(stock_replacing); i++)
		if (!stock_replacing[i]->hook->ip && stock_replacing[i]->find())
			stock_hook(stock_replacing[i]->hook);
	mutex_unlock(&stock_replaced_mutex);
}

/**
 * stock_replaced_check - whether a filter of a disk would be told of other data
 * @disk: the disk
 *
 * Context: Process context, with stock_mutex held.
 * Return: 0, or -EOPNOTSUPP, which was logged.
 */
int stock_replaced_check(struct gendisk *disk)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(stock_replacing); i++) {
		if (!stock_replacing[i]->drives(disk))
			continue;
		/* Who was in the way when the driver came may be gone. */
		stock_replaced_hook();
		/* An open disk keeps its driver, so the hook stays. */
		if (READ_ONCE(stock_replacing[i]->hook->ip))
			return 0;
		pr_err("%s: its driver cannot be hooked, and may give it other data unseen\n",
		       disk->disk_name);
		return -EOPNOTSUPP;
	}
	return 0;
}

static void stock_replaced_end(struct module *mod)
{
	unsigned int i;

	mutex_lock(&stock_replaced_mutex);
	for (i = 0; i < ARRAY_SIZE(stock_replacing); i++) {
		struct stock_hook *hook = stock_replacing[i]->hook;

		if (hook->ip && (!mod || within_module(hook->ip, mod)))
			stock_unhook(hook);
	}
	mutex_unlock(&stock_replaced_mutex);
}

/**
 * stock_replaced_forget - the code of a module is about to be freed
 * @mod: the module
 *
 * Context: Process context.
 */
void stock_replaced_forget(struct module *mod)
{
	stock_replaced_end(mod);
}

/**
 * stock_replaced_unhook - watch none
 *
 * Context: Process context.
 */
void stock_replaced_unhook(void)
{
	stock_replaced_end(NULL);
}
