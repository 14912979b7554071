/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _BLK_FILTER_INTERNAL_H
#define _BLK_FILTER_INTERNAL_H

#include <linux/blkdev.h>
#include <linux/compat.h>
#include <uapi/linux/blk-filter.h>

struct blk_write_gate;

/**
 * struct blk_filter_disk - the filters of a disk
 * @mutex: held while filters come and go, and across the freeze for that
 * @filters: list of struct blk_filter
 * @gate: counts writes, as a queue freeze does not wait for them; NULL for a
 *	request based disk
 *
 * Allocated with the first filter, freed with the disk.
 */
struct blk_filter_disk {
	struct mutex mutex;	/* held while filters come and go */
	struct list_head filters;
	struct blk_write_gate *gate;
};

#ifdef CONFIG_COMPAT_FOR_U64_ALIGNMENT
/* As struct blkfilter_attach, but for the padding at its end. */
struct compat_blkfilter_attach {
	u8 name[BLKFILTER_NAME_LENGTH];
	compat_u64 opt;
	u32 optlen;
};

#define BLKFILTER_ATTACH_32	_IOWR(0x12, 142, struct compat_blkfilter_attach)
#endif

#ifdef CONFIG_BLK_FILTER
/* blk-filter.c */
bool __blk_filter_bio(struct blk_filter_disk *fd, struct bio *bio);
void blk_filter_resize_disk(struct gendisk *disk, sector_t sectors);
void blk_filter_resize_part(struct block_device *part, sector_t sectors);
void blk_filter_remove(struct gendisk *disk, struct block_device *part,
		       struct module *owner);
bool blk_filter_has_owner(struct gendisk *disk, struct module *owner);
void blk_filter_free_disk(struct blk_filter_disk *fd);
ssize_t blk_filter_show(struct block_device *bdev, char *buf);
int blk_filter_find(struct block_device *bdev, const char *name);

/* blk-filter-type.c */
int blk_filter_ioctl(struct block_device *bdev, unsigned int cmd,
		     void __user *argp);

/* blk-write-gate.c */
struct blk_write_gate *blk_write_gate_alloc(void);
void blk_write_gate_free(struct blk_write_gate *gate);
void blk_write_gate_begin(struct blk_write_gate *gate);
bool blk_write_gate_enter(struct blk_write_gate *gate, struct bio *bio);
void blk_write_gate_end_io(struct bio *bio);
void blk_write_gate_leave(struct bio *bio);
bool blk_write_gate_idle(struct blk_write_gate *gate);
int blk_write_gate_setup(void);
void blk_write_gate_end(void);

/* What the front does for the above: blk-filter-tree.c, or stock/front.c. */
int blk_front_add(struct gendisk *disk);
void blk_front_sub(struct gendisk *disk, struct blk_filter_disk *fd);
void blk_front_settle(void);
bool blk_front_active(void);
struct blk_filter_disk *blk_front_alloc(struct gendisk *disk);
void blk_front_free(struct blk_filter_disk *fd);
struct blk_filter_disk *blk_front_disk(struct gendisk *disk);
void blk_front_publish(struct gendisk *disk, struct blk_filter_disk *fd);
int blk_front_begin(struct gendisk *disk, struct blk_filter_disk *fd);
void blk_front_flag(struct gendisk *disk, bool on);
bool blk_front_holds(struct gendisk *disk, struct block_device *slave);
void blk_front_resubmit(struct bio *bio);
void blk_front_end_chain(struct bio *bio);
#endif

#endif /* _BLK_FILTER_INTERNAL_H */
