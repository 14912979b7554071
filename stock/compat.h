/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What C does not have, or under another name, in kernels older than the one that the
 * sources are for.
 *
 * The compiler is told to begin each file with this.  What older kernels lack in Rust
 * is in series/.
 */
#ifndef _STOCK_COMPAT_H
#define _STOCK_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
/* Of struct bvec_iter. */
#define bi_offset	bi_bvec_done

/* Whether a bio may be completed here only by who does not sleep. */
#define bio_in_atomic()							\
	((IS_ENABLED(CONFIG_PREEMPTION) && rcu_preempt_depth()) ||	\
	 !IS_ENABLED(CONFIG_PREEMPT_COUNT) || !preemptible())
#endif

#endif /* _STOCK_COMPAT_H */
