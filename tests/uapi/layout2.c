/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The second control interface as compiled programs know it: the numbers, sizes
 * and offsets of abi-v2.md.  It need only compile, as C and as C++, for 64 and
 * 32 bit, beside the header of the first one: see tests/uapi/run.
 */
#include <stddef.h>
#include <linux/blk-filter.h>
#include <linux/blk_snap.h>
#include <linux/blksnap.h>
/* Those of a program that asks a device all kinds of things. */
#include <linux/fs.h>

#ifdef __cplusplus
#define check(expr) static_assert(expr, #expr)
#else
#define check(expr) _Static_assert(expr, #expr)
#endif

#ifdef __LP64__
#define ABI(lp64, i386) (lp64)
#else
#define ABI(lp64, i386) (i386)
#endif

#define size(name, lp64, i386) \
	check(sizeof(struct name) == ABI(lp64, i386))
#define at(name, field, bytes, lp64, i386) \
	check(offsetof(struct name, field) == ABI(lp64, i386) && \
	      sizeof(((struct name *)0)->field) == (bytes))
#define number(name, lp64, i386) \
	check(name == ABI(lp64, i386))

/* Of a block device. */

number(BLKFILTER_ATTACH, 0xC030128Eu, 0xC02C128Eu);
number(BLKFILTER_DETACH, 0xC020128Fu, 0xC020128Fu);
number(BLKFILTER_CTL, 0xC0301290u, 0xC0301290u);
check(BLKFILTER_NAME_LENGTH == 32);

size(blkfilter_attach, 48, 44);
at(blkfilter_attach, name, 32, 0, 0);
at(blkfilter_attach, opt, 8, 32, 32);
at(blkfilter_attach, optlen, 4, 40, 40);

size(blkfilter_detach, 32, 32);
at(blkfilter_detach, name, 32, 0, 0);

size(blkfilter_ctl, 48, 48);
at(blkfilter_ctl, name, 32, 0, 0);
at(blkfilter_ctl, cmd, 4, 32, 32);
at(blkfilter_ctl, optlen, 4, 36, 36);
at(blkfilter_ctl, opt, 8, 40, 40);

check(blkfilter_ctl_blksnap_cbtinfo == 0);
check(blkfilter_ctl_blksnap_cbtmap == 1);
check(blkfilter_ctl_blksnap_cbtdirty == 2);
check(blkfilter_ctl_blksnap_snapshotadd == 3);
check(blkfilter_ctl_blksnap_snapshotinfo == 4);

size(blksnap_cbtinfo, 40, 36);
at(blksnap_cbtinfo, device_capacity, 8, 0, 0);
at(blksnap_cbtinfo, block_size, 4, 8, 8);
at(blksnap_cbtinfo, block_count, 4, 12, 12);
at(blksnap_cbtinfo, generation_id, 16, 16, 16);
at(blksnap_cbtinfo, changes_number, 1, 32, 32);

size(blksnap_cbtmap, 16, 16);
at(blksnap_cbtmap, offset, 4, 0, 0);
at(blksnap_cbtmap, length, 4, 4, 4);
at(blksnap_cbtmap, buffer, 8, 8, 8);

size(blksnap_sectors, 16, 16);
at(blksnap_sectors, offset, 8, 0, 0);
at(blksnap_sectors, count, 8, 8, 8);

size(blksnap_cbtdirty, 16, 12);
at(blksnap_cbtdirty, count, 4, 0, 0);
at(blksnap_cbtdirty, dirty_sectors, 8, 8, 4);

size(blksnap_snapshotadd, 16, 16);
at(blksnap_snapshotadd, id, 16, 0, 0);

size(blksnap_snapshotinfo, 36, 36);
at(blksnap_snapshotinfo, error_code, 4, 0, 0);
at(blksnap_snapshotinfo, image, 32, 4, 4);

/* What no other module has. */

check(blkfilter_ctl_blksnap_stat == 64);
number(IOCTL_BLKSNAP_BIND, 0x5640u, 0x5640u);
number(IOCTL_BLK_SNAP_BIND, 0x5640u, 0x5640u);
number(IOCTL_BLKSNAP_UNUSED, 0x40285641u, 0x40285641u);
number(IOCTL_BLK_SNAP_UNUSED, 0x40285641u, 0x40285641u);

size(blksnap_stat, 80, 80);
at(blksnap_stat, size, 8, 0, 0);
at(blksnap_stat, map_memory, 8, 8, 8);
at(blksnap_stat, writes_held, 8, 16, 16);
at(blksnap_stat, copies_in_flight, 8, 24, 24);
at(blksnap_stat, copy_memory, 8, 32, 32);
at(blksnap_stat, reads_retried, 8, 40, 40);
at(blksnap_stat, bytes_copied, 8, 48, 48);
at(blksnap_stat, storage_size, 8, 56, 56);
at(blksnap_stat, storage_used, 8, 64, 64);
at(blksnap_stat, since, 8, 72, 72);

/* Of the control device. */

number(IOCTL_BLKSNAP_VERSION, 0x80085600u, 0x80085600u);
number(IOCTL_BLKSNAP_SNAPSHOT_CREATE, 0xC0205601u, 0xC0205601u);
number(IOCTL_BLKSNAP_SNAPSHOT_DESTROY, 0x40105602u, 0x40105602u);
number(IOCTL_BLKSNAP_SNAPSHOT_TAKE, 0x40105603u, 0x40105603u);
number(IOCTL_BLKSNAP_SNAPSHOT_COLLECT, 0x80105604u, 0x800C5604u);
number(IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, 0x90005605u, 0x90005605u);
check(blksnap_ioctl_version == 0);
check(blksnap_ioctl_snapshot_wait_event == 5);
check(blksnap_event_code_corrupted == 0);
check(blksnap_event_code_no_space == 1);

size(blksnap_uuid, 16, 16);
at(blksnap_uuid, b, 16, 0, 0);

size(blksnap_version, 8, 8);
at(blksnap_version, major, 2, 0, 0);
at(blksnap_version, minor, 2, 2, 2);
at(blksnap_version, revision, 2, 4, 4);
at(blksnap_version, build, 2, 6, 6);

size(blksnap_snapshot_create, 32, 32);
at(blksnap_snapshot_create, diff_storage_limit_sect, 8, 0, 0);
at(blksnap_snapshot_create, diff_storage_filename, 8, 8, 8);
at(blksnap_snapshot_create, id, 16, 16, 16);

size(blksnap_snapshot_collect, 16, 12);
at(blksnap_snapshot_collect, count, 4, 0, 0);
at(blksnap_snapshot_collect, ids, 8, 8, 4);

size(blksnap_snapshot_event, 4096, 4096);
at(blksnap_snapshot_event, id, 16, 0, 0);
at(blksnap_snapshot_event, timeout_ms, 4, 16, 16);
at(blksnap_snapshot_event, code, 4, 20, 20);
at(blksnap_snapshot_event, time_label, 8, 24, 24);
at(blksnap_snapshot_event, data, 4064, 32, 32);

size(blksnap_event_corrupted, 12, 12);
at(blksnap_event_corrupted, dev_id_mj, 4, 0, 0);
at(blksnap_event_corrupted, dev_id_mn, 4, 4, 4);
at(blksnap_event_corrupted, err_code, 4, 8, 8);

size(blksnap_event_no_space, 8, 8);
at(blksnap_event_no_space, requested_nr_sect, 8, 0, 0);

#define unused(name) \
	size(name, 40, 40); \
	at(name, id, 16, 0, 0); \
	at(name, flags, 4, 24, 24); \
	at(name, count, 4, 28, 28); \
	at(name, ranges, 8, 32, 32)
unused(blksnap_unused);
at(blksnap_unused, dev_id_mj, 4, 16, 16);
at(blksnap_unused, dev_id_mn, 4, 20, 20);
unused(blk_snap_unused);
at(blk_snap_unused, dev_id, 8, 16, 16);

/* One word means two things, which is why the interfaces cannot share a node. */
number(IOCTL_BLKSNAP_SNAPSHOT_DESTROY, IOCTL_BLK_SNAP_TRACKER_COLLECT, 0x40105602u);
