// SPDX-License-Identifier: GPL-2.0
/*
 * Disks that get other data without a bio: see dm.c and loop.c.
 *
 * Both drivers may be modules, which come and go, and so do their hooks.  Where one cannot
 * be hooked, its disks get no filter: that would not be told of other data.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/major.h>
#include <linux/module.h>
#include "stock.h"

/*
 * Held while these hooks come and go.  Taken with the lock of the module notifiers, or
 * with stock_mutex held.
 */
static DEFINE_MUTEX(stock_replaced_mutex);

/* Those of the drivers that there are. */
static struct stock_hook *stock_replaced_hooks[2];

/**
 * stock_replaced_hook - watch the drivers that there are
 *
 * Context: Process context.  May be called again, when there are more.
 */
void stock_replaced_hook(void)
{
	mutex_lock(&stock_replaced_mutex);
	stock_replaced_hooks[0] = stock_dm_hook();
	stock_replaced_hooks[1] = stock_loop_hook();
	mutex_unlock(&stock_replaced_mutex);
}

/* Which of the above a disk needs; -1 is none. */
static int stock_replaced_index(struct gendisk *disk)
{
	if (str_has_prefix(disk->disk_name, "dm-"))
		return 0;
	return disk->major == LOOP_MAJOR ? 1 : -1;
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
	int index = stock_replaced_index(disk);
	struct stock_hook *hook;
	bool hooked;

	if (index < 0)
		return 0;
	/* Somebody else may have been in the way, and is not any more. */
	stock_replaced_hook();
	mutex_lock(&stock_replaced_mutex);
	hook = stock_replaced_hooks[index];
	hooked = hook && hook->ip;
	mutex_unlock(&stock_replaced_mutex);
	if (hooked)
		return 0;
	pr_err("%s: its driver cannot be hooked, and may give it other data unseen\n",
	       disk->disk_name);
	return -EOPNOTSUPP;
}

static void stock_replaced_end(struct module *mod)
{
	unsigned int i;

	mutex_lock(&stock_replaced_mutex);
	for (i = 0; i < ARRAY_SIZE(stock_replaced_hooks); i++) {
		struct stock_hook *hook = stock_replaced_hooks[i];

		if (hook && hook->ip && (!mod || within_module(hook->ip, mod)))
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
