/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The control interface as compiled programs know it: the numbers, sizes and
 * offsets of abi.md.  It need only compile, as C and as C++, for 64 and 32 bit:
 * see tests/uapi/run.
 */
#include <stddef.h>
#include <linux/blk_snap.h>

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
	check(sizeof(struct blk_snap_##name) == ABI(lp64, i386))
#define at(name, field, lp64, i386) \
	check(offsetof(struct blk_snap_##name, field) == ABI(lp64, i386))
#define number(name, lp64, i386) \
	check(IOCTL_BLK_SNAP_##name == ABI(lp64, i386))

number(VERSION, 0x40085600u, 0x40085600u);
number(TRACKER_REMOVE, 0x40085601u, 0x40085601u);
number(TRACKER_COLLECT, 0x40105602u, 0x40085602u);
number(TRACKER_READ_CBT_MAP, 0x80185603u, 0x80145603u);
number(TRACKER_MARK_DIRTY_BLOCKS, 0x80185604u, 0x80105604u);
number(SNAPSHOT_CREATE, 0x40205605u, 0x40185605u);
number(SNAPSHOT_DESTROY, 0x80105606u, 0x80105606u);
number(SNAPSHOT_APPEND_STORAGE, 0x40285607u, 0x40205607u);
number(SNAPSHOT_TAKE, 0x80105608u, 0x80105608u);
number(SNAPSHOT_COLLECT, 0x40105609u, 0x40085609u);
number(SNAPSHOT_COLLECT_IMAGES, 0x4020560Au, 0x4018560Au);
number(SNAPSHOT_WAIT_EVENT, 0x5000560Bu, 0x5000560Bu);
check(blk_snap_ioctl_end == 12);
check(blk_snap_event_code_low_free_space == 0);
check(blk_snap_event_code_corrupted == 1);

size(uuid, 16, 16);

size(version, 8, 8);
at(version, major, 0, 0);
at(version, minor, 2, 2);
at(version, revision, 4, 4);
at(version, build, 6, 6);

size(dev_t, 8, 8);
at(dev_t, mj, 0, 0);
at(dev_t, mn, 4, 4);

size(tracker_remove, 8, 8);

size(cbt_info, 48, 44);
at(cbt_info, dev_id, 0, 0);
at(cbt_info, blk_size, 8, 8);
at(cbt_info, device_capacity, 16, 12);
at(cbt_info, blk_count, 24, 20);
at(cbt_info, generation_id, 28, 24);
at(cbt_info, snap_number, 44, 40);

size(tracker_collect, 16, 8);
at(tracker_collect, cbt_info_array, 8, 4);

size(tracker_read_cbt_bitmap, 24, 20);
at(tracker_read_cbt_bitmap, offset, 8, 8);
at(tracker_read_cbt_bitmap, length, 12, 12);
at(tracker_read_cbt_bitmap, buff, 16, 16);

size(block_range, 16, 16);
at(block_range, sector_count, 8, 8);

size(tracker_mark_dirty_blocks, 24, 16);
at(tracker_mark_dirty_blocks, count, 8, 8);
at(tracker_mark_dirty_blocks, dirty_blocks_array, 16, 12);

size(snapshot_create, 32, 24);
at(snapshot_create, dev_id_array, 8, 4);
at(snapshot_create, id, 16, 8);

size(snapshot_destroy, 16, 16);
size(snapshot_take, 16, 16);

size(snapshot_append_storage, 40, 32);
at(snapshot_append_storage, id, 0, 0);
at(snapshot_append_storage, dev_id, 16, 16);
at(snapshot_append_storage, count, 24, 24);
at(snapshot_append_storage, ranges, 32, 28);

size(snapshot_collect, 16, 8);
at(snapshot_collect, ids, 8, 4);

size(image_info, 16, 16);
at(image_info, image_dev_id, 8, 8);

size(snapshot_collect_images, 32, 24);
at(snapshot_collect_images, count, 16, 16);
at(snapshot_collect_images, image_info_array, 24, 20);

size(snapshot_event, 4096, 4096);
at(snapshot_event, timeout_ms, 16, 16);
at(snapshot_event, code, 20, 20);
at(snapshot_event, time_label, 24, 24);
at(snapshot_event, data, 32, 32);

size(event_low_free_space, 8, 8);
size(event_corrupted, 12, 12);
at(event_corrupted, err_code, 8, 8);
