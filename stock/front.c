// SPDX-License-Identifier: GPL-2.0
/*
 * What blk-filter.c asks of its front, on a kernel that does not know of filters.
 *
 * What there is of a disk is in a table, from its first filter until the disk is
 * released.  Some seconds after the last filter of all disks was detached everything
 * ends: nothing is hooked any more, and nothing here is referred to.  Hooks come and go
 * with grace periods, so they do not with each filter.  Before the module is unloaded
 * that is waited for, see stock_end().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>
#include "stock.h"

/* Held while hooks come and go, and until nobody is in those that went. */
static DEFINE_MUTEX(stock_mutex);
/* Whether anything is hooked; changes with stock_mutex held. */
static bool stock_started;
/* Filters that are attached, or about to be. */
static atomic_t stock_filters = ATOMIC_INIT(0);
/* Tasks in wrappers. */
struct stock_count stock_tasks;
/* Frees what there is of disks that went. */
static struct workqueue_struct *stock_wq;

/* How long hooks stay that no filter needs. */
#define STOCK_SETTLE	(10 * HZ)

static void stock_settle_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(stock_settle, stock_settle_work);

/* What all disks have in common. */
static const struct class *stock_class;
static const struct device_type *stock_type;

/* Read under RCU. */
static DEFINE_HASHTABLE(stock_disks, 8);
/* Changes of stock_disks; a leaf, taken with interrupts off. */
static DEFINE_SPINLOCK(stock_disks_lock);

/**
 * stock_disk_find - find what there is of a disk
 * @disk: the disk
 *
 * Context: Any.  It stays as long as the disk does and one of this: the disk has a
 * filter; the caller is counted in stock_tasks, or does not sleep; the gate is closed by
 * the caller.
 * Return: It, or NULL.
 */
struct stock_disk *stock_disk_find(struct gendisk *disk)
{
	struct stock_disk *sd;

	rcu_read_lock();
	hash_for_each_possible_rcu(stock_disks, sd, node, (unsigned long)disk)
		if (sd->disk == disk)
			break;
	rcu_read_unlock();
	return sd;
}

struct blk_filter_disk *blk_front_disk(struct gendisk *disk)
{
	struct stock_disk *sd = stock_disk_find(disk);

	return sd ? &sd->fd : NULL;
}

static void stock_disk_free_work(struct work_struct *work)
{
	struct stock_disk *sd = container_of(work, struct stock_disk, free_work);

	/* Who finds it in the table; and who has just ended the disk's last bio. */
	synchronize_rcu();
	while (!stock_count_is_zero(&sd->gate.inside))
		schedule_timeout_uninterruptible(1);
	synchronize_rcu();
	blk_filter_free_disk(&sd->fd);
}

struct blk_filter_disk *blk_front_alloc(struct gendisk *disk)
{
	struct stock_disk *sd = kzalloc_obj(*sd);

	if (!sd)
		return NULL;
	if (stock_gate_init(&sd->gate)) {
		kfree(sd);
		return NULL;
	}
	INIT_WORK(&sd->free_work, stock_disk_free_work);
	return &sd->fd;
}

void blk_front_free(struct blk_filter_disk *fd)
{
	struct stock_disk *sd = to_stock_disk(fd);

	stock_gate_free(&sd->gate);
	kfree(sd);
}

void blk_front_publish(struct gendisk *disk, struct blk_filter_disk *fd)
{
	struct stock_disk *sd = to_stock_disk(fd);

	sd->disk = disk;
	spin_lock_irq(&stock_disks_lock);
	hash_add_rcu(stock_disks, &sd->node, (unsigned long)disk);
	spin_unlock_irq(&stock_disks_lock);
}

/**
 * stock_disk_forget - a disk is about to be freed
 * @disk: the disk, of which there need not be anything
 *
 * Context: Any.
 */
void stock_disk_forget(struct gendisk *disk)
{
	struct stock_disk *sd = stock_disk_find(disk);
	unsigned long flags;

	if (!sd)
		return;
	spin_lock_irqsave(&stock_disks_lock, flags);
	hash_del_rcu(&sd->node);
	spin_unlock_irqrestore(&stock_disks_lock, flags);
	queue_work(stock_wq, &sd->free_work);
}

/* Code of modules comes and goes. */
static int stock_module_event(struct notifier_block *nb, unsigned long event,
			      void *module)
{
	if (event == MODULE_STATE_LIVE) {
		stock_replaced_hook();
	} else if (event == MODULE_STATE_GOING) {
		stock_submit_forget(module);
		stock_replaced_forget(module);
	}
	return NOTIFY_DONE;
}

static struct notifier_block stock_module_nb = {
	.notifier_call = stock_module_event,
};

/**
 * stock_disk_iter_init - begin to iterate over all disks
 * @iter: the iterator, to be ended by class_dev_iter_exit()
 *
 * Context: Process context, in a wrapper.
 */
void stock_disk_iter_init(struct class_dev_iter *iter)
{
	class_dev_iter_init(iter, stock_class, NULL, stock_type);
}

static int stock_start(struct gendisk *disk)
{
	int ret = stock_submit_setup();

	if (ret)
		return ret;
	stock_chain_setup();
	stock_class = disk_to_dev(disk)->class;
	stock_type = disk_to_dev(disk)->type;
	ret = stock_count_init(&stock_tasks);
	if (ret)
		return ret;
	ret = blk_write_gate_setup();
	if (ret)
		goto free_count;
	ret = -ENOMEM;
	stock_wq = alloc_workqueue("blk_filter", WQ_UNBOUND, 0);
	if (!stock_wq)
		goto end_gates;
	ret = stock_removal_hook(disk);
	if (ret)
		goto destroy_wq;
	ret = register_module_notifier(&stock_module_nb);
	if (ret)
		goto unhook;
	stock_replaced_hook();
	stock_started = true;
	return 0;

unhook:
	stock_removal_unhook();
	/* Somebody may have gone there meanwhile. */
	stock_count_wait(&stock_tasks, MAX_SCHEDULE_TIMEOUT);
destroy_wq:
	destroy_workqueue(stock_wq);
end_gates:
	blk_write_gate_end();
free_count:
	stock_count_free(&stock_tasks);
	return ret;
}

/* Whether nobody stops a disk, and no write in flight has our completion. */
static bool stock_disks_are_idle(void)
{
	struct stock_disk *sd;
	unsigned int bucket;
	bool idle = true;

	rcu_read_lock();
	hash_for_each_rcu(stock_disks, bucket, sd, node)
		idle &= !atomic_read(&sd->gate.closed) &&
			(!sd->fd.gate || blk_write_gate_idle(sd->fd.gate));
	rcu_read_unlock();
	return idle;
}

/* The disks that are still there, and those that went: nobody refers to them. */
static void stock_free_disks(void)
{
	unsigned long warn = jiffies + 10 * HZ;
	struct stock_disk *sd, *next_sd;
	struct hlist_node *next;
	unsigned int bucket;
	LIST_HEAD(unused);

	while (!stock_disks_are_idle()) {
		if (warn && time_after(jiffies, warn)) {
			pr_warn("waiting for writes in flight of a disk that had a filter\n");
			warn = 0;
		}
		schedule_timeout_uninterruptible(1);
	}
	hash_for_each_safe(stock_disks, bucket, next, sd, node) {
		hash_del_rcu(&sd->node);
		list_add(&sd->unused, &unused);
	}
	/*
	 * Completions of the last writes: in tasks, and in interrupts.  And ioctls, which
	 * look for a filter of a disk that has none.
	 */
	synchronize_rcu_tasks();
	synchronize_rcu();
	list_for_each_entry_safe(sd, next_sd, &unused, unused)
		blk_filter_free_disk(&sd->fd);
	destroy_workqueue(stock_wq);
}

static void stock_stop(void)
{
	stock_submit_settle();
	unregister_module_notifier(&stock_module_nb);
	stock_replaced_unhook();
	stock_removal_unhook();
	stock_count_wait(&stock_tasks, MAX_SCHEDULE_TIMEOUT);
	stock_free_disks();
	blk_write_gate_end();
	stock_count_free(&stock_tasks);
	stock_started = false;
}

/* Also returns what hooking a function does: see stock_hook_at(). */
int blk_front_add(struct gendisk *disk)
{
	int ret = 0;

	mutex_lock(&stock_mutex);
	if (!stock_started)
		ret = stock_start(disk);
	if (!ret) {
		ret = stock_replaced_check(disk) ?: stock_submit_add(disk);
		if (!ret)
			atomic_inc(&stock_filters);
		else
			blk_front_settle();
	}
	mutex_unlock(&stock_mutex);
	return ret;
}

/* No lock is taken here: who waits for hooked functions may hold it. */
void blk_front_sub(struct gendisk *disk, struct blk_filter_disk *fd)
{
	stock_submit_sub(disk);
	atomic_dec(&stock_filters);
}

void blk_front_settle(void)
{
	mod_delayed_work(system_dfl_wq, &stock_settle, STOCK_SETTLE);
}

static void stock_settle_work(struct work_struct *work)
{
	mutex_lock(&stock_mutex);
	if (stock_started) {
		stock_submit_settle();
		/*
		 * Attaching waits for us: so no waiting for I/O of who knows which disk,
		 * nor for who waits for that in a wrapper.
		 */
		if (!atomic_read(&stock_filters)) {
			if (stock_disks_are_idle() && stock_count_is_zero(&stock_tasks))
				stock_stop();
			else
				blk_front_settle();
		}
	}
	mutex_unlock(&stock_mutex);
}

/**
 * stock_end - end all that is left
 *
 * To be called when no filter is attached, nor will be.
 *
 * Context: Process context; waits for writes in flight that have our completion.
 */
void stock_end(void)
{
	cancel_delayed_work_sync(&stock_settle);
	mutex_lock(&stock_mutex);
	if (stock_started)
		stock_stop();
	mutex_unlock(&stock_mutex);
	/* That it has set itself again, while it waited for us. */
	cancel_delayed_work_sync(&stock_settle);
}

bool blk_front_active(void)
{
	return atomic_read(&stock_filters);
}

/*
 * From now on each bio of the disk is counted by its gate.  Wait for those that passed
 * by our hook, or the place for it, before, and have not entered the queue yet: no
 * freeze waits for them.  They sleep nowhere but before a frozen queue.
 */
int blk_front_begin(struct gendisk *disk, struct blk_filter_disk *fd)
{
	struct wait_queue_head *frozen = &disk->queue->mq_freeze_wq;
	struct stock_disk *sd = to_stock_disk(fd);
	unsigned long end = jiffies + 10 * HZ;

	/* Those of a bio based disk are in the queue when they come by. */
	if (stock_disk_is_bio_based(sd))
		return 0;
	/* The hook has been there since the last time. */
	if (sd->hooked == stock_submit_generation(disk))
		return 0;
	do {
		while (wq_has_sleeper(frozen)) {
			if (time_after(jiffies, end)) {
				pr_err("%s: its queue has been frozen for too long\n",
				       disk->disk_name);
				return -EBUSY;
			}
			schedule_timeout_uninterruptible(1);
		}
		synchronize_rcu_tasks();
	} while (wq_has_sleeper(frozen));
	sd->hooked = stock_submit_generation(disk);
	return 0;
}

/* That a disk has filters is known from the table. */
void blk_front_flag(struct gendisk *disk, bool on)
{
}

/*
 * What the kernel would show as the attribute "filters" of each disk and partition, if
 * it knew of filters: the devices that have one, one in a line.
 */
static int stock_show_filters(char *buffer, const struct kernel_param *kp)
{
	struct class_dev_iter iter;
	struct block_device *part;
	struct device *dev;
	unsigned long idx;
	int len = 0;

	mutex_lock(&stock_mutex);
	if (!stock_started)
		goto unlock;
	stock_disk_iter_init(&iter);
	while ((dev = class_dev_iter_next(&iter))) {
		rcu_read_lock();
		xa_for_each(&dev_to_disk(dev)->part_tbl, idx, part)
			if (!blk_filter_find(part, KBUILD_MODNAME))
				len += sysfs_emit_at(buffer, len, "%pg\n", part);
		rcu_read_unlock();
	}
	class_dev_iter_exit(&iter);
unlock:
	mutex_unlock(&stock_mutex);
	return len;
}

static const struct kernel_param_ops stock_filters_ops = {
	.get = stock_show_filters,
};
module_param_cb(filters, &stock_filters_ops, NULL, 0444);
__MODULE_PARM_TYPE(filters, "list");
MODULE_PARM_DESC(filters, "The devices that have the filter; read only");
