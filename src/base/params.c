// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters that can be changed at run time. The module! macro of Rust
 * cannot declare such; params.rs defines and explains them.
 */
#include <linux/kstrtox.h>
#include <linux/limits.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include "params.h"

/*
 * A parameter from min to max. Other values are refused, also at load. Those of
 * 2022 say that they are of type int.
 */
#define BLKSNAP_PARAM(name, min, max, description)			\
	BLKSNAP_PARAM_OF(name, "int", &blksnap_##name, min, max, description)

#define BLKSNAP_PARAM_OF(name, type, value, min, max, description)	\
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
module_param_cb(name, &blksnap_ops_##name, value, 0644);		\
__MODULE_PARM_TYPE(name, type);						\
MODULE_PARM_DESC(name, description)

BLKSNAP_PARAM(tracking_block_minimum_shift, 9, 31,
	      "log2 of the smallest tracking block in bytes, 9 to 31");
BLKSNAP_PARAM(tracking_block_maximum_count, 1, INT_MAX,
	      "The tracking block grows until a device has no more");
BLKSNAP_PARAM_OF(tracking_block_maximum_shift, "uint",
		 &blksnap_tracking_block_maximum_shift, 9, 31,
		 "But not beyond this log2 of its size in bytes, 9 to 31");
BLKSNAP_PARAM(chunk_minimum_shift, 12, 20,
	      "log2 of the smallest chunk in bytes, 12 to 20");
BLKSNAP_PARAM(chunk_maximum_count, 1, INT_MAX,
	      "The chunk grows, up to 1 MiB, until a device has no more");
BLKSNAP_PARAM_OF(chunk_maximum_shift, "uint", &blksnap_chunk_maximum_shift, 12,
		 63, "But not beyond this log2 of its size in bytes, 12 to 63");

/* Another view of chunk_maximum_count: the last one that is written counts. */
static int blksnap_set_count_shift(const char *val, const struct kernel_param *kp)
{
	unsigned int shift;

	if (kstrtouint(val, 0, &shift) || shift > 63)
		return -EINVAL;
	WRITE_ONCE(blksnap_chunk_maximum_count,
		   shift < 31 ? 1U << shift : INT_MAX);
	return 0;
}

static int blksnap_get_count_shift(char *buffer, const struct kernel_param *kp)
{
	unsigned int count = READ_ONCE(blksnap_chunk_maximum_count);

	return sysfs_emit(buffer, "%d\n", order_base_2(count));
}

static const struct kernel_param_ops blksnap_ops_count_shift = {
	.set = blksnap_set_count_shift,
	.get = blksnap_get_count_shift,
};
module_param_cb(chunk_maximum_count_shift, &blksnap_ops_count_shift, NULL, 0644);
__MODULE_PARM_TYPE(chunk_maximum_count_shift, "uint");
MODULE_PARM_DESC(chunk_maximum_count_shift,
		 "log2 of chunk_maximum_count, 0 to 63; 31 and more are no limit");

BLKSNAP_PARAM(chunk_maximum_in_cache, 1, 4096,
	      "Memory for copies of a device, in pieces of 256 KiB, 1 to 4096");
BLKSNAP_PARAM_OF(chunk_maximum_in_queue, "uint", &blksnap_chunk_maximum_in_cache,
		 1, 4096, "The same as chunk_maximum_in_cache");
BLKSNAP_PARAM(copy_ahead_maximum_ratio, 1, 64,
	      "Bytes that may be copied for one that is overwritten, 1 to 64");
BLKSNAP_PARAM(free_diff_buffer_pool_size, 0, INT_MAX,
	      "Without effect: copies keep their buffers");
BLKSNAP_PARAM(diff_storage_minimum, 8, INT_MAX,
	      "The portion by which storage grows, in sectors, 8 or more");

BLKSNAP_PARAM(diff_storage_timeout, 0, 86400,
	      "Seconds that writes wait for storage that does not answer, 0 for ever");

/* Which ABIs are served, as bits. */
static const char * const blksnap_frontend_names[] = {
	"v1", "v2", "standalone"
};

static int blksnap_set_frontends(const char *val, const struct kernel_param *kp)
{
	char *names = kstrdup(val, GFP_KERNEL), *rest, *name;
	unsigned int mask = 0;
	int ret = 0, i;

	if (!names)
		return -ENOMEM;
	rest = strim(names);
	while (!ret && (name = strsep(&rest, ","))) {
		i = match_string(blksnap_frontend_names,
				 ARRAY_SIZE(blksnap_frontend_names), name);
		if (i < 0)
			ret = -EINVAL;
		else
			mask |= BIT(i);
	}
	if (!ret)
		blksnap_frontends = mask;
	kfree(names);
	return ret;
}

static int blksnap_get_frontends(char *buffer, const struct kernel_param *kp)
{
	const char *comma = "";
	int len = 0, i;

	for (i = 0; i < ARRAY_SIZE(blksnap_frontend_names); i++) {
		if (!(blksnap_frontends & BIT(i)))
			continue;
		len += sysfs_emit_at(buffer, len, "%s%s", comma,
				     blksnap_frontend_names[i]);
		comma = ",";
	}
	return len + sysfs_emit_at(buffer, len, "\n");
}

static const struct kernel_param_ops blksnap_ops_frontends = {
	.set = blksnap_set_frontends,
	.get = blksnap_get_frontends,
};
module_param_cb(frontends, &blksnap_ops_frontends, NULL, 0444);
__MODULE_PARM_TYPE(frontends, "charp");
MODULE_PARM_DESC(frontends,
		 "The control interfaces: v1, v2, standalone, with commas; all but the last");

#ifdef CONFIG_BLK_SNAP_FAULTS
BLKSNAP_PARAM(fault, 0, 11,
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
