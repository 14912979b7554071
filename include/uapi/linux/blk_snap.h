/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Snapshots of block devices and tracking of changed blocks: the control
 * interface of the blksnap module.
 *
 * A snapshot is made in these steps on /dev/blksnap:
 *
 *  1. &IOCTL_BLK_SNAP_SNAPSHOT_CREATE names the original devices.
 *  2. &IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE gives the snapshot disk space
 *     for the old contents of blocks that are overwritten.  An event asks for
 *     the first portion at once, and for more while the snapshot is held.
 *  3. &IOCTL_BLK_SNAP_SNAPSHOT_TAKE captures all devices at one instant.
 *  4. &IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES names the block devices
 *     /dev/blksnap-image<minor> that show that instant.
 *  5. &IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP tells which blocks have changed
 *     since an earlier snapshot.
 *  6. &IOCTL_BLK_SNAP_SNAPSHOT_DESTROY ends it.  Tracking goes on.
 *
 * The direction bits of the control numbers are the reverse of the usual: they
 * are part of the numbers that programs were built with, and stay.  The layout
 * of the structures is that of the C compiler, so 32-bit programs have other
 * sizes and numbers for those that hold a pointer; the module serves both.
 */
#ifndef _UAPI_LINUX_BLK_SNAP_H
#define _UAPI_LINUX_BLK_SNAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The name of the module and of its control device in /dev. */
#define BLK_SNAP_MODULE_NAME	"blksnap"
/* The name of an image device in /dev, before its minor number. */
#define BLK_SNAP_IMAGE_NAME	"blksnap-image"
/* The type of all control numbers. */
#define BLK_SNAP		'V'

/**
 * enum blk_snap_ioctl - Numbers of the controls
 *
 * @blk_snap_ioctl_version: &IOCTL_BLK_SNAP_VERSION
 * @blk_snap_ioctl_tracker_remove: &IOCTL_BLK_SNAP_TRACKER_REMOVE
 * @blk_snap_ioctl_tracker_collect: &IOCTL_BLK_SNAP_TRACKER_COLLECT
 * @blk_snap_ioctl_tracker_read_cbt_map: &IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP
 * @blk_snap_ioctl_tracker_mark_dirty_blocks:
 *	&IOCTL_BLK_SNAP_TRACKER_MARK_DIRTY_BLOCKS
 * @blk_snap_ioctl_snapshot_create: &IOCTL_BLK_SNAP_SNAPSHOT_CREATE
 * @blk_snap_ioctl_snapshot_destroy: &IOCTL_BLK_SNAP_SNAPSHOT_DESTROY
 * @blk_snap_ioctl_snapshot_append_storage:
 *	&IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE
 * @blk_snap_ioctl_snapshot_take: &IOCTL_BLK_SNAP_SNAPSHOT_TAKE
 * @blk_snap_ioctl_snapshot_collect: &IOCTL_BLK_SNAP_SNAPSHOT_COLLECT
 * @blk_snap_ioctl_snapshot_collect_images:
 *	&IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES
 * @blk_snap_ioctl_snapshot_wait_event: &IOCTL_BLK_SNAP_SNAPSHOT_WAIT_EVENT
 * @blk_snap_ioctl_end: how many there are
 */
enum blk_snap_ioctl {
	blk_snap_ioctl_version,
	blk_snap_ioctl_tracker_remove,
	blk_snap_ioctl_tracker_collect,
	blk_snap_ioctl_tracker_read_cbt_map,
	blk_snap_ioctl_tracker_mark_dirty_blocks,
	blk_snap_ioctl_snapshot_create,
	blk_snap_ioctl_snapshot_destroy,
	blk_snap_ioctl_snapshot_append_storage,
	blk_snap_ioctl_snapshot_take,
	blk_snap_ioctl_snapshot_collect,
	blk_snap_ioctl_snapshot_collect_images,
	blk_snap_ioctl_snapshot_wait_event,
	blk_snap_ioctl_end
};

/**
 * struct blk_snap_uuid - An identifier of 16 bytes
 *
 * @b: the bytes in the order of RFC 9562
 */
struct blk_snap_uuid {
	__u8 b[16];
};

/**
 * struct blk_snap_dev_t - The number of a block device
 *
 * @mj: major number, as user space sees it in st_rdev
 * @mn: minor number
 */
struct blk_snap_dev_t {
	__u32 mj;
	__u32 mn;
};

/**
 * struct blk_snap_block_range - A range of a block device
 *
 * @sector_offset: first sector, in units of 512 bytes
 * @sector_count: number of sectors of 512 bytes
 */
struct blk_snap_block_range {
	__u64 sector_offset;
	__u64 sector_count;
};

/**
 * struct blk_snap_version - The version of the module
 *
 * @major: changes when programs must change
 * @minor: changes when something is added
 * @revision: changes when something is mended
 * @build: the build
 */
struct blk_snap_version {
	__u16 major;
	__u16 minor;
	__u16 revision;
	__u16 build;
};

/**
 * IOCTL_BLK_SNAP_VERSION - Get the version of the module
 *
 * Fills &struct blk_snap_version.  Return: 0 or -EFAULT.
 */
#define IOCTL_BLK_SNAP_VERSION						\
	_IOW(BLK_SNAP, blk_snap_ioctl_version, struct blk_snap_version)

/**
 * struct blk_snap_tracker_remove - Argument of
 *	&IOCTL_BLK_SNAP_TRACKER_REMOVE
 *
 * @dev_id: the device that is no longer to be tracked
 */
struct blk_snap_tracker_remove {
	struct blk_snap_dev_t dev_id;
};

/**
 * IOCTL_BLK_SNAP_TRACKER_REMOVE - Stop tracking a device
 *
 * The change map of the device is lost.
 *
 * Return: 0, -ENODATA if the device is not tracked, -EBUSY while it is part of
 * a snapshot, or the error of opening the device.
 */
#define IOCTL_BLK_SNAP_TRACKER_REMOVE					\
	_IOW(BLK_SNAP, blk_snap_ioctl_tracker_remove,			\
	     struct blk_snap_tracker_remove)

/**
 * struct blk_snap_cbt_info - What is known of a tracked device
 *
 * @dev_id: the device
 * @blk_size: size of a tracking block, in bytes; a power of two
 * @device_capacity: size of the device, in bytes
 * @blk_count: number of tracking blocks, each one byte in the change map
 * @generation_id: random; another one means that numbers of earlier snapshots
 *	tell nothing any more, and that all blocks must be read again
 * @snap_number: number of the last snapshot taken, 0 when there was none.  The
 *	blocks that have changed since the snapshot with number N of the same
 *	generation are those with a byte greater than N.
 */
struct blk_snap_cbt_info {
	struct blk_snap_dev_t dev_id;
	__u32 blk_size;
	__u64 device_capacity;
	__u32 blk_count;
	struct blk_snap_uuid generation_id;
	__u8 snap_number;
};

/**
 * struct blk_snap_tracker_collect - Argument of
 *	&IOCTL_BLK_SNAP_TRACKER_COLLECT
 *
 * @count: in: room in @cbt_info_array, in elements; out: number of trackers
 * @cbt_info_array: where the trackers are stored, or NULL to ask for the number
 */
struct blk_snap_tracker_collect {
	__u32 count;
	struct blk_snap_cbt_info *cbt_info_array;
};

/**
 * IOCTL_BLK_SNAP_TRACKER_COLLECT - List the tracked devices
 *
 * In the order in which tracking began.
 *
 * Return: 0, -ENOBUFS if @count was too small (it then tells what is needed),
 * or -EFAULT.
 */
#define IOCTL_BLK_SNAP_TRACKER_COLLECT					\
	_IOW(BLK_SNAP, blk_snap_ioctl_tracker_collect,			\
	     struct blk_snap_tracker_collect)

/**
 * struct blk_snap_tracker_read_cbt_bitmap - Argument of
 *	&IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP
 *
 * @dev_id: the device
 * @offset: first byte of the map to read, which is the number of the block
 * @length: number of bytes to read
 * @buff: where they are stored
 */
struct blk_snap_tracker_read_cbt_bitmap {
	struct blk_snap_dev_t dev_id;
	__u32 offset;
	__u32 length;
	__u8 *buff;
};

/**
 * IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP - Read the change map of a device
 *
 * The map is that of the last take, one byte for each tracking block: the
 * number of the snapshot interval in which the block was last written.
 *
 * Return: the number of bytes stored, 0 at or past the end of the map;
 * -ENODATA if the device is not tracked, -EPERM if it is not in a taken
 * snapshot, or -EFAULT.
 */
#define IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP				\
	_IOR(BLK_SNAP, blk_snap_ioctl_tracker_read_cbt_map,		\
	     struct blk_snap_tracker_read_cbt_bitmap)

/**
 * struct blk_snap_tracker_mark_dirty_blocks - Argument of
 *	&IOCTL_BLK_SNAP_TRACKER_MARK_DIRTY_BLOCKS
 *
 * @dev_id: a tracked device, or an image, which stands for its original
 * @count: number of elements of @dirty_blocks_array
 * @dirty_blocks_array: the ranges
 */
struct blk_snap_tracker_mark_dirty_blocks {
	struct blk_snap_dev_t dev_id;
	__u32 count;
	struct blk_snap_block_range *dirty_blocks_array;
};

/**
 * IOCTL_BLK_SNAP_TRACKER_MARK_DIRTY_BLOCKS - Mark ranges as changed
 *
 * They will be in this and in the next increment.  Needs no snapshot.
 *
 * Return: 0, -ENODEV if the device is neither tracked nor an image, -EINVAL if
 * a range is empty or not inside the device (then none is marked), or -EFAULT.
 */
#define IOCTL_BLK_SNAP_TRACKER_MARK_DIRTY_BLOCKS			\
	_IOR(BLK_SNAP, blk_snap_ioctl_tracker_mark_dirty_blocks,	\
	     struct blk_snap_tracker_mark_dirty_blocks)

/**
 * struct blk_snap_snapshot_create - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_CREATE
 *
 * @count: number of elements of @dev_id_array
 * @dev_id_array: the devices that are to be captured at one instant
 * @id: out: the snapshot
 */
struct blk_snap_snapshot_create {
	__u32 count;
	struct blk_snap_dev_t *dev_id_array;
	struct blk_snap_uuid id;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_CREATE - Prepare a snapshot
 *
 * Tracking begins for devices that are not tracked yet.  One event
 * &blk_snap_event_code_low_free_space is queued at once.
 *
 * Return: 0, -EINVAL if there is no device or one is named twice, -EBUSY if
 * one is already in a snapshot, -EFAULT, or the error of opening a device.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_CREATE					\
	_IOW(BLK_SNAP, blk_snap_ioctl_snapshot_create,			\
	     struct blk_snap_snapshot_create)

/**
 * struct blk_snap_snapshot_destroy - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_DESTROY
 *
 * @id: the snapshot
 */
struct blk_snap_snapshot_destroy {
	struct blk_snap_uuid id;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_DESTROY - End a snapshot
 *
 * Its images are removed, also when they are open, and when the call returns
 * nothing more is written to its storage.  Tracking goes on.
 *
 * Return: 0, -ENODEV if there is no such snapshot, or -EFAULT.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_DESTROY					\
	_IOR(BLK_SNAP, blk_snap_ioctl_snapshot_destroy,			\
	     struct blk_snap_snapshot_destroy)

/**
 * struct blk_snap_snapshot_append_storage - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE
 *
 * @id: the snapshot
 * @dev_id: the block device that holds the ranges
 * @count: number of elements of @ranges
 * @ranges: what the snapshot may write to, such as the extents of a file
 */
struct blk_snap_snapshot_append_storage {
	struct blk_snap_uuid id;
	struct blk_snap_dev_t dev_id;
	__u32 count;
	struct blk_snap_block_range *ranges;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE - Give a snapshot disk space
 *
 * Any number of times, on any devices, the captured ones too, before and after
 * the take.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -EINVAL if a range is empty,
 * not inside the device, not in its logical blocks or overlaps another (then
 * none is used), -EFAULT, -ENOMEM, or the error of opening the device.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE				\
	_IOW(BLK_SNAP, blk_snap_ioctl_snapshot_append_storage,		\
	     struct blk_snap_snapshot_append_storage)

/**
 * struct blk_snap_snapshot_take - Argument of &IOCTL_BLK_SNAP_SNAPSHOT_TAKE
 *
 * @id: the snapshot
 */
struct blk_snap_snapshot_take {
	struct blk_snap_uuid id;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_TAKE - Capture all devices at one instant
 *
 * The file systems are flushed and frozen meanwhile.  When the call returns the
 * images are present.  When it fails the snapshot is as before.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -EALREADY if it was taken
 * before, -ENODEV if it has no devices, -EFAULT if it has no storage (or @id
 * cannot be read), or -ENOMEM.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_TAKE					\
	_IOR(BLK_SNAP, blk_snap_ioctl_snapshot_take,			\
	     struct blk_snap_snapshot_take)

/**
 * struct blk_snap_snapshot_collect - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_COLLECT
 *
 * @count: in: room in @ids, in elements; out: number of snapshots
 * @ids: where their ids are stored, or NULL to ask for the number
 */
struct blk_snap_snapshot_collect {
	__u32 count;
	struct blk_snap_uuid *ids;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_COLLECT - List the snapshots
 *
 * In the order of their creation.
 *
 * Return: 0, -ENODATA if @count was too small (it then tells what is needed),
 * or -EFAULT.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_COLLECT					\
	_IOW(BLK_SNAP, blk_snap_ioctl_snapshot_collect,			\
	     struct blk_snap_snapshot_collect)

/**
 * struct blk_snap_image_info - An original device and its image
 *
 * @orig_dev_id: the device that was captured
 * @image_dev_id: the device that shows it as it was
 */
struct blk_snap_image_info {
	struct blk_snap_dev_t orig_dev_id;
	struct blk_snap_dev_t image_dev_id;
};

/**
 * struct blk_snap_snapshot_collect_images - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES
 *
 * @id: the snapshot
 * @count: in: room in @image_info_array, in elements; out: number of images
 * @image_info_array: where they are stored, or NULL to ask for the number
 */
struct blk_snap_snapshot_collect_images {
	struct blk_snap_uuid id;
	__u32 count;
	struct blk_snap_image_info *image_info_array;
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES - List the images of a snapshot
 *
 * In the order in which the devices were given when it was created.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -ENODEV if it is not taken,
 * -ENODATA if @count was too small (it then tells what is needed), or -EFAULT.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES				\
	_IOW(BLK_SNAP, blk_snap_ioctl_snapshot_collect_images,		\
	     struct blk_snap_snapshot_collect_images)

/**
 * enum blk_snap_event_codes - Events of a snapshot
 *
 * @blk_snap_event_code_low_free_space: the snapshot needs more storage;
 *	&struct blk_snap_event_low_free_space
 * @blk_snap_event_code_corrupted: an image has failed for good;
 *	&struct blk_snap_event_corrupted
 */
enum blk_snap_event_codes {
	blk_snap_event_code_low_free_space,
	blk_snap_event_code_corrupted
};

/**
 * struct blk_snap_snapshot_event - Argument of
 *	&IOCTL_BLK_SNAP_SNAPSHOT_WAIT_EVENT
 *
 * @id: in: the snapshot
 * @timeout_ms: in: how long to wait, in milliseconds; 0 only looks
 * @code: out: &enum blk_snap_event_codes
 * @time_label: out: when it happened, in nanoseconds of CLOCK_MONOTONIC
 * @data: out: more about the event, a structure for each code
 */
struct blk_snap_snapshot_event {
	struct blk_snap_uuid id;
	__u32 timeout_ms;
	__u32 code;
	__s64 time_label;
	__u8 data[4096 - 32];
};

/**
 * IOCTL_BLK_SNAP_SNAPSHOT_WAIT_EVENT - Wait for the next event of a snapshot
 *
 * Each event is given to one caller, the oldest first.
 *
 * Return: 0, -ENOENT when the time is over, -EINTR on a signal, -ESRCH if there
 * is no such snapshot or it is destroyed meanwhile, or -EFAULT.
 */
#define IOCTL_BLK_SNAP_SNAPSHOT_WAIT_EVENT				\
	_IOW(BLK_SNAP, blk_snap_ioctl_snapshot_wait_event,		\
	     struct blk_snap_snapshot_event)

/**
 * struct blk_snap_event_low_free_space - Data of
 *	&blk_snap_event_code_low_free_space
 *
 * @requested_nr_sect: how much storage to append, in sectors of 512 bytes
 */
struct blk_snap_event_low_free_space {
	__u64 requested_nr_sect;
};

/**
 * struct blk_snap_event_corrupted - Data of &blk_snap_event_code_corrupted
 *
 * @orig_dev_id: the original device whose image has failed
 * @err_code: why, a positive errno
 */
struct blk_snap_event_corrupted {
	struct blk_snap_dev_t orig_dev_id;
	__s32 err_code;
};

/**
 * IOCTL_BLK_SNAP_BIND - Bind snapshots to their maker
 *
 * Snapshots that are created by this open file from now on are destroyed when it
 * is closed, as it is when the program is killed.  Not in the interface of 2022:
 * other modules answer -ENOTTY.
 *
 * Return: 0.
 */
#define IOCTL_BLK_SNAP_BIND	_IO(BLK_SNAP, 64)

/**
 * struct blk_snap_unused - Argument of &IOCTL_BLK_SNAP_UNUSED
 *
 * @id: the snapshot
 * @dev_id: one of its devices
 * @flags: 0
 * @count: number of elements of @ranges
 * @ranges: a pointer to an array of &struct blk_snap_block_range
 */
struct blk_snap_unused {
	struct blk_snap_uuid id;
	struct blk_snap_dev_t dev_id;
	__u32 flags;
	__u32 count;
	__u64 ranges;
};

/**
 * IOCTL_BLK_SNAP_UNUSED - Tell what was not used at the instant
 *
 * After the take, any number of times: ranges of a captured device that had no
 * meaning, such as the free blocks of a file system as its image has them.  They
 * may overlap.  Writes to them are not copied from then on, discards are passed
 * on, and the image shows zeroes, or what was written to it.  That cannot be
 * taken back.  Chunks of which only a part is in a range stay as they are, and
 * so do those that were copied before.  Not in the interface of 2022: other
 * modules answer -ENOTTY.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -EPERM if it is bound to
 * another open file, -ENODEV if it is not taken, -ENOENT if the device is not in
 * it, -EINVAL if @flags is not 0, there are more than 2^20 ranges, or one is
 * empty or not inside the device (then none is used), -EIO if the image is lost,
 * -EFAULT, or -ENOMEM.
 */
#define IOCTL_BLK_SNAP_UNUSED						\
	_IOW(BLK_SNAP, 65, struct blk_snap_unused)

#endif /* _UAPI_LINUX_BLK_SNAP_H */
