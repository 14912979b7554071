// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters that can be changed at run time. The module! macro of Rust
 * cannot declare such; params.rs defines and explains them.
 */
#include <linux/limits.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include "params.h"

/* A parameter from min to max. Other values are refused, also at load. */
#define BLKSNAP_PARAM(name, min, max, description)			\
static int blksnap_set_##name(const char *val,				\
			      const struct kernel_param *kp)		\
{									\
	int ret = param_set_uint_minmax(val, kp, min, max);		\
									\
	return ret == -ERANGE ? -EINVAL : ret;				\
}									\
static const struct kernel_param_ops blksnap_ops_##name = {		\
	.set = blksnap_set_##name,					\
	.get = param_get_uint,						\
};									\
module_param_cb(name, &blksnap_ops_##name, &blksnap_##name, 0644);	\
__MODULE_PARM_TYPE(name, "int");					\
MODULE_PARM_DESC(name, description)

BLKSNAP_PARAM(tracking_block_minimum_shift, 9, 31,
	      "log2 of the smallest tracking block in bytes, 9 to 31");
BLKSNAP_PARAM(tracking_block_maximum_count, 1, INT_MAX,
	      "The tracking block grows until a device has no more");
BLKSNAP_PARAM(chunk_minimum_shift, 12, 20,
	      "log2 of the smallest chunk in bytes, 12 to 20");
BLKSNAP_PARAM(chunk_maximum_count, 1, INT_MAX,
	      "The chunk grows, up to 1 MiB, until a device has no more");
BLKSNAP_PARAM(chunk_maximum_in_cache, 1, 4096,
	      "Copies of a device that are in memory at one time, 1 to 4096");
BLKSNAP_PARAM(copy_ahead_maximum_ratio, 1, 64,
	      "Bytes that may be copied for one that is overwritten, 1 to 64");
BLKSNAP_PARAM(free_diff_buffer_pool_size, 0, INT_MAX,
	      "Without effect: copies keep their buffers");
BLKSNAP_PARAM(diff_storage_minimum, 8, INT_MAX,
	      "The portion asked for by a low free space event, in sectors, 8 or more");

BLKSNAP_PARAM(diff_storage_timeout, 0, 86400,
	      "Seconds that writes wait for storage that does not answer, 0 for ever");

#ifdef CONFIG_BLK_SNAP_FAULTS
BLKSNAP_PARAM(fault, 0, 10,
	      "What to do wrong, see faults.rs; 0 for nothing");
#endif

#ifdef CONFIG_BLK_SNAP_DELAYS
BLKSNAP_PARAM(delay_us, 0, 1000000,
	      "How long to wait at the most, see delays.rs; 0 for never");
BLKSNAP_PARAM(delay_points, 0, UINT_MAX,
	      "Where to wait: bits of points, see delays.rs");
BLKSNAP_PARAM(delay_chance, 1, INT_MAX,
	      "To wait once in so many times");
#endif

MODULE_VERSION("1.0.0.0");
