/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Filters of block devices: how user space attaches them, detaches them and
 * gives them commands.
 *
 * These are ioctls on the block device itself, a disk or a partition, which may
 * be open for reading only and mounted.  All need CAP_SYS_ADMIN.
 *
 * The layout of the structures is that of the C compiler, so that 32-bit
 * programs have another size and number of &BLKFILTER_ATTACH; the kernel serves
 * both.  Pointers are 64 bits for all.
 */
#ifndef _UAPI_LINUX_BLK_FILTER_H
#define _UAPI_LINUX_BLK_FILTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The room for the name of a filter, in bytes, with the NUL at its end. */
#define BLKFILTER_NAME_LENGTH	32

/**
 * struct blkfilter_attach - Argument of &BLKFILTER_ATTACH
 *
 * @name: the filter; what follows the NUL is ignored
 * @opt: a pointer to options of the filter; blksnap has none and ignores it
 * @optlen: the size of the options in bytes
 */
struct blkfilter_attach {
	__u8 name[BLKFILTER_NAME_LENGTH];
	__u64 opt;
	__u32 optlen;
};

/**
 * struct blkfilter_detach - Argument of &BLKFILTER_DETACH
 *
 * @name: the filter
 */
struct blkfilter_detach {
	__u8 name[BLKFILTER_NAME_LENGTH];
};

/**
 * struct blkfilter_ctl - Argument of &BLKFILTER_CTL
 *
 * @name: the filter
 * @cmd: the number of the command, which the filter defines
 * @optlen: the size of the command's structure in bytes
 * @opt: a pointer to it
 */
struct blkfilter_ctl {
	__u8 name[BLKFILTER_NAME_LENGTH];
	__u32 cmd;
	__u32 optlen;
	__u64 opt;
};

/**
 * BLKFILTER_ATTACH - Attach a filter to a block device
 *
 * Return: 0, -EALREADY if it is attached, -ENOENT if there is no such filter,
 * -EBUSY if the device has another one that does not share it, -EINVAL if the
 * name has no end, -EPERM, -EFAULT, -ENOMEM, -ENODEV if the device is being
 * removed, or -EOPNOTSUPP if the filter cannot serve it.
 */
#define BLKFILTER_ATTACH	_IOWR(0x12, 142, struct blkfilter_attach)

/**
 * BLKFILTER_DETACH - Detach a filter from a block device
 *
 * Return: 0, -ENOENT if none is attached, -EINVAL if another one is, or the name
 * has no end, -EBUSY if the filter is in use, -EPERM, -EFAULT, or -ENODEV.
 */
#define BLKFILTER_DETACH	_IOWR(0x12, 143, struct blkfilter_detach)

/**
 * BLKFILTER_CTL - Give a command to a filter that is attached
 *
 * Return: 0, -ENOENT if none is attached, -EINVAL if another one is, or the name
 * has no end, -ENOTTY if the filter has no such command, -EINVAL if @optlen is
 * less than the command's structure needs, -EPERM, -EFAULT, -ENODEV, or an error
 * of the command.  They are looked for in this order.
 */
#define BLKFILTER_CTL		_IOWR(0x12, 144, struct blkfilter_ctl)

#endif /* _UAPI_LINUX_BLK_FILTER_H */
