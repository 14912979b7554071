/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Snapshots of block devices and tracking of changed blocks: the second control
 * interface of the blksnap module, that of 2025.  The first one, of 2022, is in
 * <linux/blk_snap.h>; both can be used at the same time.
 *
 * A snapshot is made in these steps.  Commands of snapshots go to
 * /dev/blksnap-control, commands of devices to the block device itself, by
 * &BLKFILTER_CTL of <linux/blk-filter.h> with the name &BLKSNAP_FILTER_NAME:
 *
 *  1. &BLKFILTER_ATTACH begins to track the changes of a device.
 *  2. &IOCTL_BLKSNAP_SNAPSHOT_CREATE names the file that is to hold the old
 *     contents of blocks that are overwritten.  The module opens it and makes
 *     it larger as needed, up to a limit.
 *  3. &blkfilter_ctl_blksnap_snapshotadd adds a device; once for each.
 *  4. &IOCTL_BLKSNAP_SNAPSHOT_TAKE captures all devices at one instant.
 *  5. &blkfilter_ctl_blksnap_snapshotinfo names the block device that shows
 *     that instant: /dev/blksnap-<major>-<minor>, the numbers of the original.
 *  6. &blkfilter_ctl_blksnap_cbtinfo and &blkfilter_ctl_blksnap_cbtmap tell
 *     which blocks have changed since an earlier snapshot.
 *  7. &IOCTL_BLKSNAP_SNAPSHOT_DESTROY ends it.  Tracking goes on until
 *     &BLKFILTER_DETACH.
 *
 * The direction bits of some control numbers are not what one would expect: they
 * are part of the numbers that programs were built with, and stay.  The layout
 * of the structures is that of the C compiler, so some are shorter for 32-bit
 * programs; the module serves both.  Pointers are 64 bits for all.
 */
#ifndef _UAPI_LINUX_BLKSNAP_H
#define _UAPI_LINUX_BLKSNAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The name of the control device in /dev. */
#define BLKSNAP_CTL		"blksnap-control"
/* The name of an image in /dev, before the numbers of the original. */
#define BLKSNAP_IMAGE_NAME	"blksnap"
/* The name of the filter. */
#define BLKSNAP_FILTER_NAME	"blksnap"
/* The type of all control numbers. */
#define BLKSNAP			'V'

/**
 * enum blkfilter_ctl_blksnap - Commands of a device, for &BLKFILTER_CTL
 *
 * @blkfilter_ctl_blksnap_cbtinfo: get what is known of its change tracking;
 *	&struct blksnap_cbtinfo
 * @blkfilter_ctl_blksnap_cbtmap: read its change map; &struct blksnap_cbtmap
 * @blkfilter_ctl_blksnap_cbtdirty: mark blocks as changed;
 *	&struct blksnap_cbtdirty
 * @blkfilter_ctl_blksnap_snapshotadd: add it to a snapshot;
 *	&struct blksnap_snapshotadd
 * @blkfilter_ctl_blksnap_snapshotinfo: get its image, and whether that is good;
 *	&struct blksnap_snapshotinfo
 * @blkfilter_ctl_blksnap_stat: get its counters; &struct blksnap_stat.  Not in
 *	the interface of 2025: other modules answer -ENOTTY
 */
enum blkfilter_ctl_blksnap {
	blkfilter_ctl_blksnap_cbtinfo,
	blkfilter_ctl_blksnap_cbtmap,
	blkfilter_ctl_blksnap_cbtdirty,
	blkfilter_ctl_blksnap_snapshotadd,
	blkfilter_ctl_blksnap_snapshotinfo,
	blkfilter_ctl_blksnap_stat = 64
};

/**
 * struct blksnap_uuid - An identifier of 16 bytes
 *
 * @b: the bytes in the order of RFC 9562
 */
struct blksnap_uuid {
	__u8 b[16];
};

/**
 * struct blksnap_cbtinfo - What is known of the change tracking of a device
 *
 * @device_capacity: size of the device, in bytes
 * @block_size: size of a tracking block, in bytes; a power of two
 * @block_count: number of tracking blocks, each one byte in the change map
 * @generation_id: random; another one means that numbers of earlier snapshots
 *	tell nothing any more, and that all blocks must be read again
 * @changes_number: number of the last snapshot taken, 0 when there was none.
 *	The blocks that have changed since the snapshot with number N of the same
 *	generation are those with a byte greater than N.
 *
 * Out only.  Needs no snapshot.  &blkfilter_ctl.optlen is at least 33: what
 * follows @changes_number is padding.
 */
struct blksnap_cbtinfo {
	__u64 device_capacity;
	__u32 block_size;
	__u32 block_count;
	struct blksnap_uuid generation_id;
	__u8 changes_number;
};

/**
 * struct blksnap_cbtmap - A part of the change map of a device
 *
 * @offset: first byte of the map to read, which is the number of the block
 * @length: number of bytes to read
 * @buffer: a pointer to where they are stored
 *
 * The map is that of the last take, one byte for each tracking block: the number
 * of the snapshot interval in which the block was last written.  Needs no
 * snapshot; it is all 0 before the first take.  Not more than there is of it is
 * stored: the caller knows how much that is from &struct blksnap_cbtinfo.
 *
 * Errors: -ENODATA if @offset is at or past the end of the map.
 */
struct blksnap_cbtmap {
	__u32 offset;
	__u32 length;
	__u64 buffer;
};

/**
 * struct blksnap_sectors - A range of a block device
 *
 * @offset: first sector, in units of 512 bytes
 * @count: number of sectors of 512 bytes
 */
struct blksnap_sectors {
	__u64 offset;
	__u64 count;
};

/**
 * struct blksnap_cbtdirty - Ranges of a device to be marked as changed
 *
 * @count: number of ranges
 * @dirty_sectors: a pointer to an array of &struct blksnap_sectors
 *
 * They will be in this and in the next increment.  Needs no snapshot.
 *
 * Errors: -EINVAL if a range is empty or not inside the device; then none is
 * marked.
 */
struct blksnap_cbtdirty {
	__u32 count;
	__u64 dirty_sectors;
};

/**
 * struct blksnap_snapshotadd - The snapshot that a device is to be added to
 *
 * @id: a snapshot that is created, but not taken yet
 *
 * Errors: -ESRCH if there is no such snapshot, -EALREADY if the device is in it,
 * -EBUSY if it is in another one, if the snapshot was taken, or if the device
 * holds the snapshot's storage in a way that does not allow it.
 */
struct blksnap_snapshotadd {
	struct blksnap_uuid id;
};

/* The room for the name of an image, in bytes, with the NUL at its end. */
#define IMAGE_DISK_NAME_LEN	32

/**
 * struct blksnap_snapshotinfo - The image of a device
 *
 * @error_code: 0, or a negative errno if the image is lost: -ENOSPC if the
 *	storage was full
 * @image: name of the image in /dev, filled up with zeros; empty while the
 *	device is in no snapshot that was taken
 *
 * Out only.
 */
struct blksnap_snapshotinfo {
	__s32 error_code;
	__u8 image[IMAGE_DISK_NAME_LEN];
};

/**
 * struct blksnap_stat - Counters of a device
 *
 * @size: how many bytes of this structure were stored: no more than
 *	&blkfilter_ctl.optlen.  Later versions have more at the end
 * @map_memory: bytes of memory of the change map
 * @writes_held: writes that wait for a copy at the moment
 * @copies_in_flight: copies under way
 * @copy_memory: bytes of memory of the copies and of what is known of chunks
 * @reads_retried: reads of the image that a write overtook
 * @bytes_copied: bytes that were copied for the snapshot, of all devices
 * @storage_size: bytes of the snapshot's storage
 * @storage_used: bytes of it in use
 * @since: when tracking began, in seconds since 1970
 *
 * Out only.  What concerns a snapshot is 0 without one.
 */
struct blksnap_stat {
	__u64 size;
	__u64 map_memory;
	__u64 writes_held;
	__u64 copies_in_flight;
	__u64 copy_memory;
	__u64 reads_retried;
	__u64 bytes_copied;
	__u64 storage_size;
	__u64 storage_used;
	__u64 since;
};

/**
 * enum blksnap_ioctl - Numbers of the controls
 *
 * @blksnap_ioctl_version: &IOCTL_BLKSNAP_VERSION
 * @blksnap_ioctl_snapshot_create: &IOCTL_BLKSNAP_SNAPSHOT_CREATE
 * @blksnap_ioctl_snapshot_destroy: &IOCTL_BLKSNAP_SNAPSHOT_DESTROY
 * @blksnap_ioctl_snapshot_take: &IOCTL_BLKSNAP_SNAPSHOT_TAKE
 * @blksnap_ioctl_snapshot_collect: &IOCTL_BLKSNAP_SNAPSHOT_COLLECT
 * @blksnap_ioctl_snapshot_wait_event: &IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT
 */
enum blksnap_ioctl {
	blksnap_ioctl_version,
	blksnap_ioctl_snapshot_create,
	blksnap_ioctl_snapshot_destroy,
	blksnap_ioctl_snapshot_take,
	blksnap_ioctl_snapshot_collect,
	blksnap_ioctl_snapshot_wait_event
};

/**
 * struct blksnap_version - The version of this interface
 *
 * @major: 2; another one means that programs must change
 * @minor: changes when something is added
 * @revision: changes when something is mended
 * @build: the build
 */
struct blksnap_version {
	__u16 major;
	__u16 minor;
	__u16 revision;
	__u16 build;
};

/**
 * IOCTL_BLKSNAP_VERSION - Get the version of this interface
 *
 * Fills &struct blksnap_version.  Return: 0 or -EFAULT.
 */
#define IOCTL_BLKSNAP_VERSION						\
	_IOR(BLKSNAP, blksnap_ioctl_version, struct blksnap_version)

/**
 * struct blksnap_snapshot_create - Argument of &IOCTL_BLKSNAP_SNAPSHOT_CREATE
 *
 * @diff_storage_limit_sect: how large the storage may become, in sectors of 512
 *	bytes; does not bind a block device, nor a file that is larger already
 * @diff_storage_filename: a pointer to the path of the storage, which ends with
 *	NUL: a regular file, a directory, in which a file without a name is
 *	made, or a block device
 * @id: out: the snapshot
 */
struct blksnap_snapshot_create {
	__u64 diff_storage_limit_sect;
	__u64 diff_storage_filename;
	struct blksnap_uuid id;
};

/**
 * IOCTL_BLKSNAP_SNAPSHOT_CREATE - Prepare a snapshot
 *
 * Opens the storage as the program would that calls it: by its working
 * directory, root and rights.  Nobody else can write to it, make it smaller or
 * move it until the snapshot is destroyed.  The snapshot has no devices yet.
 *
 * Return: 0, the error of opening the storage, -EINVAL if it is neither a
 * regular file nor a directory nor a block device, -EBUSY if somebody uses it in
 * a way that does not allow this, -ENOSPC if it is larger than the limit and
 * nevertheless too small, the error of making it larger, or -EFAULT.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_CREATE					\
	_IOWR(BLKSNAP, blksnap_ioctl_snapshot_create,			\
	      struct blksnap_snapshot_create)

/**
 * IOCTL_BLKSNAP_SNAPSHOT_DESTROY - End a snapshot
 *
 * The argument is a &struct blksnap_uuid.  Its images are removed, also when
 * they are open; when the call returns, nothing more is written to the storage,
 * and it is closed.  Tracking goes on.
 *
 * Return: 0, -ENODEV if there is no such snapshot, or -EFAULT.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_DESTROY					\
	_IOW(BLKSNAP, blksnap_ioctl_snapshot_destroy, struct blksnap_uuid)

/**
 * IOCTL_BLKSNAP_SNAPSHOT_TAKE - Capture all devices at one instant
 *
 * The argument is a &struct blksnap_uuid.  The file systems are flushed and
 * frozen meanwhile.  When the call returns the images are present.  When it
 * fails the snapshot is as before.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -EALREADY if it was taken
 * before, -ENODEV if it has no devices, -EBUSY if its storage does not allow it,
 * -EFAULT, or -ENOMEM.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_TAKE					\
	_IOW(BLKSNAP, blksnap_ioctl_snapshot_take, struct blksnap_uuid)

/**
 * struct blksnap_snapshot_collect - Argument of
 *	&IOCTL_BLKSNAP_SNAPSHOT_COLLECT
 *
 * @count: in: room in @ids, in elements; out: number of snapshots
 * @ids: a pointer to where their identifiers are stored, or 0 to ask for the
 *	number
 */
struct blksnap_snapshot_collect {
	__u32 count;
	__u64 ids;
};

/**
 * IOCTL_BLKSNAP_SNAPSHOT_COLLECT - List the snapshots
 *
 * Those that were made by this interface, in the order of their creation.
 *
 * Return: 0, -ENODATA if @count was too small (it then tells what is needed),
 * or -EFAULT.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_COLLECT					\
	_IOR(BLKSNAP, blksnap_ioctl_snapshot_collect,			\
	     struct blksnap_snapshot_collect)

/**
 * enum blksnap_event_codes - Events of a snapshot
 *
 * @blksnap_event_code_corrupted: an image is lost for good; once for each
 *	device; &struct blksnap_event_corrupted
 * @blksnap_event_code_no_space: the storage should become larger, and has
 *	reached its limit; once; &struct blksnap_event_no_space
 */
enum blksnap_event_codes {
	blksnap_event_code_corrupted,
	blksnap_event_code_no_space
};

/**
 * struct blksnap_snapshot_event - Argument of
 *	&IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT
 *
 * @id: in: the snapshot
 * @timeout_ms: in: how long to wait, in milliseconds; 0 only looks
 * @code: out: &enum blksnap_event_codes
 * @time_label: out: when it happened, in nanoseconds of CLOCK_MONOTONIC
 * @data: out: more about the event, a structure for each code
 */
struct blksnap_snapshot_event {
	struct blksnap_uuid id;
	__u32 timeout_ms;
	__u32 code;
	__s64 time_label;
	__u8 data[4096 - 32];
};

/**
 * IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT - Wait for the next event of a snapshot
 *
 * Each event is given to one caller, the oldest first.  There is none when a
 * snapshot is created.
 *
 * Return: 0, -ENOENT when the time is over, -EINTR on a signal, -ESRCH if there
 * is no such snapshot or it is destroyed meanwhile, or -EFAULT.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT				\
	_IOR(BLKSNAP, blksnap_ioctl_snapshot_wait_event,		\
	     struct blksnap_snapshot_event)

/**
 * struct blksnap_event_corrupted - Data of &blksnap_event_code_corrupted
 *
 * @dev_id_mj: major number of the original device whose image is lost
 * @dev_id_mn: its minor number
 * @err_code: why, a positive errno
 */
struct blksnap_event_corrupted {
	__u32 dev_id_mj;
	__u32 dev_id_mn;
	__s32 err_code;
};

/**
 * struct blksnap_event_no_space - Data of &blksnap_event_code_no_space
 *
 * @requested_nr_sect: the size that the storage has reached, in sectors of 512
 *	bytes
 */
struct blksnap_event_no_space {
	__u64 requested_nr_sect;
};

/**
 * IOCTL_BLKSNAP_BIND - Bind snapshots to their maker
 *
 * Snapshots that are created by this open file from now on are destroyed when it
 * is closed, as it is when the program is killed.  Not in the interface of 2025:
 * other modules answer -ENOTTY.
 *
 * Return: 0.
 */
#define IOCTL_BLKSNAP_BIND	_IO(BLKSNAP, 64)

/**
 * struct blksnap_unused - Argument of &IOCTL_BLKSNAP_UNUSED
 *
 * @id: the snapshot
 * @dev_id_mj: major number of one of its devices
 * @dev_id_mn: minor number
 * @flags: 0
 * @count: number of elements of @ranges
 * @ranges: a pointer to an array of &struct blksnap_sectors
 */
struct blksnap_unused {
	struct blksnap_uuid id;
	__u32 dev_id_mj;
	__u32 dev_id_mn;
	__u32 flags;
	__u32 count;
	__u64 ranges;
};

/**
 * IOCTL_BLKSNAP_UNUSED - Tell what was not used at the instant
 *
 * After the take, any number of times: ranges of a captured device that had no
 * meaning, such as the free blocks of a file system as its image has them.  They
 * may overlap.  Writes to them are not copied from then on, discards are passed
 * on, and the image shows zeroes, or what was written to it.  That cannot be
 * taken back.  Chunks of which only a part is in a range stay as they are, and
 * so do those that were copied before.  Not in the interface of 2025: other
 * modules answer -ENOTTY.
 *
 * Return: 0, -ESRCH if there is no such snapshot, -EPERM if it is bound to
 * another open file, -ENODEV if it is not taken, -ENOENT if the device is not in
 * it, -EINVAL if @flags is not 0, there are more than 2^20 ranges, or one is
 * empty or not inside the device (then none is used), -EIO if the image is lost,
 * -EFAULT, or -ENOMEM.
 */
#define IOCTL_BLKSNAP_UNUSED						\
	_IOW(BLKSNAP, 65, struct blksnap_unused)

#endif /* _UAPI_LINUX_BLKSNAP_H */
