// SPDX-License-Identifier: GPL-2.0

#include <linux/sysfs.h>

#ifndef CONFIG_SYSFS
__rust_helper void rust_helper_sysfs_notify(struct kobject *kobj,
					    const char *dir, const char *attr)
{
	sysfs_notify(kobj, dir, attr);
}
#endif
