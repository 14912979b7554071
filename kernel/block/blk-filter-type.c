// SPDX-License-Identifier: GPL-2.0
/*
 * Block filters that user space attaches and controls by name, by ioctls of the block
 * device.
 *
 * A type is found under a mutex, and used without: a call to it may take as long as
 * the device does.  So its unregistration waits for calls.
 */
#include <linux/blk-filter.h>
#include <linux/blkdev.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/export.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>
#include <uapi/linux/blk-filter.h>
#include "blk-filter.h"

static DEFINE_MUTEX(blk_filter_types_mutex);
static LIST_HEAD(blk_filter_types);

static struct blk_filter_type *blk_filter_type_find(const char *name)
{
	struct blk_filter_type *type;

	list_for_each_entry(type, &blk_filter_types, node)
		if (!strcmp(type->name, name))
			return type;
	return NULL;
}

static struct blk_filter_type *blk_filter_type_get(const char *name)
{
	struct blk_filter_type *type;

	mutex_lock(&blk_filter_types_mutex);
	type = blk_filter_type_find(name);
	if (type)
		refcount_inc(&type->users);
	mutex_unlock(&blk_filter_types_mutex);
	return type;
}

static void blk_filter_type_put(struct blk_filter_type *type)
{
	if (refcount_dec_and_test(&type->users))
		complete(&type->unused);
}

/**
 * blk_filter_register - let user space attach and control filters of a name
 * @type: the name and the operations
 *
 * Context: Process context.  Calls may come before this returns.
 * Return: 0, or -EEXIST if there is a type of that name.
 */
int blk_filter_register(struct blk_filter_type *type)
{
	int ret = 0;

	refcount_set(&type->users, 1);
	init_completion(&type->unused);
	mutex_lock(&blk_filter_types_mutex);
	if (blk_filter_type_find(type->name))
		ret = -EEXIST;
	else
		list_add_tail(&type->node, &blk_filter_types);
	mutex_unlock(&blk_filter_types_mutex);
	return ret;
}
EXPORT_SYMBOL_GPL(blk_filter_register);

/**
 * blk_filter_unregister - undo blk_filter_register()
 * @type: the type
 *
 * No call is made, or runs, when this returns.  Filters stay attached.
 *
 * Context: Process context.
 */
void blk_filter_unregister(struct blk_filter_type *type)
{
	mutex_lock(&blk_filter_types_mutex);
	list_del(&type->node);
	mutex_unlock(&blk_filter_types_mutex);
	blk_filter_type_put(type);
	wait_for_completion(&type->unused);
}
EXPORT_SYMBOL_GPL(blk_filter_unregister);

/* Structures differ between programs of 32 and 64 bits in their padding only. */
union blk_filter_args {
	u8 name[BLKFILTER_NAME_LENGTH];
	struct blkfilter_attach attach;
	struct blkfilter_detach detach;
	struct blkfilter_ctl ctl;
};

int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		     void __user *argp)
{
	struct blk_filter_type *type;
	union blk_filter_args args;
	const char *name = args.name;
	int ret;

#ifdef CONFIG_COMPAT_FOR_U64_ALIGNMENT
	/* These have another word for it. */
	if (in_compat_syscall() && cmd == BLKFILTER_ATTACH)
		return -ENOTTY;
#endif
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&args, argp, min(_IOC_SIZE(cmd), sizeof(args))))
		return -EFAULT;
	if (strnlen(name, sizeof(args.name)) == sizeof(args.name))
		return -EINVAL;
	if (!disk_live(bdev->bd_disk))
		return -ENODEV;
	if (_IOC_NR(cmd) != _IOC_NR(BLKFILTER_ATTACH)) {
		ret = blk_filter_find(bdev, name);
		if (ret)
			return ret;
	}

	type = blk_filter_type_get(name);
	if (!type)
		return -ENOENT;
	switch (_IOC_NR(cmd)) {
	case _IOC_NR(BLKFILTER_ATTACH):
		ret = type->attach(type, bdev, args.attach.opt,
				   args.attach.optlen);
		break;
	case _IOC_NR(BLKFILTER_DETACH):
		ret = type->detach(type, bdev);
		break;
	default:
		ret = type->ctl(type, bdev, args.ctl.cmd, args.ctl.opt,
				args.ctl.optlen, in_compat_syscall());
		break;
	}
	blk_filter_type_put(type);
	return ret;
}
