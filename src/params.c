// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters that can be changed at run time. The module! macro of Rust
 * cannot declare such; params.rs defines and explains them.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include "params.h"

module_param_named(tracking_block_minimum_shift, blksnap_tracking_block_minimum_shift, int, 0644);
MODULE_PARM_DESC(tracking_block_minimum_shift,
		 "log2 of the smallest tracking block in bytes");
module_param_named(tracking_block_maximum_count, blksnap_tracking_block_maximum_count, int, 0644);
MODULE_PARM_DESC(tracking_block_maximum_count,
		 "The tracking block grows until a device has no more");
module_param_named(chunk_minimum_shift, blksnap_chunk_minimum_shift, int, 0644);
MODULE_PARM_DESC(chunk_minimum_shift,
		 "log2 of the smallest chunk in bytes; at the most 20");
module_param_named(chunk_maximum_count, blksnap_chunk_maximum_count, int, 0644);
MODULE_PARM_DESC(chunk_maximum_count,
		 "The chunk grows until a device has no more");
module_param_named(chunk_maximum_in_cache, blksnap_chunk_maximum_in_cache, int, 0644);
MODULE_PARM_DESC(chunk_maximum_in_cache,
		 "Copies of a device that are in memory at one time");
module_param_named(free_diff_buffer_pool_size, blksnap_free_diff_buffer_pool_size, int, 0644);
MODULE_PARM_DESC(free_diff_buffer_pool_size,
		 "Without effect: copies keep their buffers");
module_param_named(diff_storage_minimum, blksnap_diff_storage_minimum, int, 0644);
MODULE_PARM_DESC(diff_storage_minimum,
		 "The portion asked for by a low free space event, in sectors");

MODULE_VERSION("1.0.0.0");
