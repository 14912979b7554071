/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _BLKSNAP_PARAMS_H
#define _BLKSNAP_PARAMS_H

/* Defined in params.rs. */
extern unsigned int blksnap_tracking_block_minimum_shift;
extern unsigned int blksnap_tracking_block_maximum_count;
extern unsigned int blksnap_tracking_block_maximum_shift;
extern unsigned int blksnap_chunk_minimum_shift;
extern unsigned int blksnap_chunk_maximum_shift;
extern unsigned int blksnap_chunk_maximum_count;
extern unsigned int blksnap_chunk_maximum_in_cache;
extern unsigned int blksnap_copy_ahead_maximum_ratio;
extern unsigned int blksnap_free_diff_buffer_pool_size;
extern unsigned int blksnap_diff_storage_minimum;
extern unsigned int blksnap_diff_storage_timeout;
extern unsigned int blksnap_frontends;
extern unsigned int blksnap_fault;
extern unsigned int blksnap_delay_us;
extern unsigned int blksnap_delay_points;
extern unsigned int blksnap_delay_chance;

#endif /* _BLKSNAP_PARAMS_H */
