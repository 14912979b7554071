/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Held files: space of a file that the kernel uses as it likes, as it uses a swap
 * file.  See fs/held-file.c.
 */
#ifndef _LINUX_HELD_FILE_H
#define _LINUX_HELD_FILE_H

#include <linux/types.h>

struct bio;
struct held_file;

/**
 * typedef held_file_extent_t - takes an extent of a held file
 * @data: what was given to held_file_extents()
 * @sector: the first sector on the device
 * @sectors: the number of sectors
 *
 * Returns 0 to go on, or an error.
 */
typedef int (*held_file_extent_t)(void *data, sector_t sector,
				  sector_t sectors);

struct held_file *held_file_open(const char __user *path, dev_t *dev);
int held_file_hold(struct held_file *hf, dev_t *dev);
u64 held_file_size(struct held_file *hf);
dev_t held_file_super_dev(struct held_file *hf);
u64 held_file_free(struct held_file *hf);
int held_file_sync(struct held_file *hf);
int held_file_allocate(struct held_file *hf, u64 from, u64 to);
int held_file_extents(struct held_file *hf, held_file_extent_t take,
		      void *data);
void held_file_submit_bio(struct held_file *hf, struct bio *bio);
void held_file_put(struct held_file *hf);

#endif /* _LINUX_HELD_FILE_H */
