// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters that can be changed at run time. The module! macro of Rust
 * cannot declare such; params.rs defines and explains them.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>

#define BLKSNAP_PARAM(name)						\
	extern int blksnap_##name;					\
	module_param_named(name, blksnap_##name, int, 0644)

BLKSNAP_PARAM(tracking_block_minimum_shift);
MODULE_PARM_DESC(tracking_block_minimum_shift,
		 "log2 of the smallest tracking block in bytes");
BLKSNAP_PARAM(tracking_block_maximum_count);
MODULE_PARM_DESC(tracking_block_maximum_count,
		 "The tracking block grows until a device has no more");
BLKSNAP_PARAM(chunk_minimum_shift);
MODULE_PARM_DESC(chunk_minimum_shift,
		 "log2 of the smallest chunk in bytes; at the most 20");
BLKSNAP_PARAM(chunk_maximum_count);
MODULE_PARM_DESC(chunk_maximum_count,
		 "The chunk grows until a device has no more");
BLKSNAP_PARAM(chunk_maximum_in_cache);
MODULE_PARM_DESC(chunk_maximum_in_cache,
		 "Copies of a device that are in memory at one time");
BLKSNAP_PARAM(free_diff_buffer_pool_size);
MODULE_PARM_DESC(free_diff_buffer_pool_size,
		 "Without effect: copies keep their buffers");
BLKSNAP_PARAM(diff_storage_minimum);
MODULE_PARM_DESC(diff_storage_minimum,
		 "The portion asked for by a low free space event, in sectors");

MODULE_VERSION("1.0.0.0");
