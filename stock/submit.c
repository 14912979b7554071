// SPDX-License-Identifier: GPL-2.0
/*
 * See each bio of a disk before its driver does.
 *
 * Request based disks have one function for that, blk_mq_submit_bio(): in front of the
 * queue, hence the gate.  A bio based driver's is its own, called inside of the queue,
 * where a freeze waits for it, and where it must not wait for one.
 *
 * Each function has a slot, as each needs a wrapper of its own to go on.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bio.h>
#include <linux/module.h>
#include "stock.h"

/* Shows a bio to the filters.  Whether it was taken; @gated is set to what to leave. */
static bool stock_show(struct bio *bio, struct stock_gate **gated)
{
	struct stock_disk *sd;

	stock_count_in(&stock_tasks);
	sd = stock_disk_find(bio->bi_bdev->bd_disk);
	if (!sd)
		return false;
	if (stock_disk_is_bio_based(sd)) {
		/* What was changed while the queue was frozen is seen. */
		smp_acquire__after_ctrl_dep();
	} else {
		if (!stock_gate_enter(&sd->gate, !(bio->bi_opf & REQ_NOWAIT))) {
			bio_wouldblock_error(bio);
			return true;
		}
		*gated = &sd->gate;
	}
	return __blk_filter_bio(&sd->fd, bio);
}

static void stock_shown(struct stock_gate *gated)
{
	if (gated)
		stock_gate_leave(gated);
	stock_count_out(&stock_tasks);
}

static void no_submit_bio(struct bio *bio)
{
	bio_io_error(bio);
}

/* Bios of disks that have no filters go on at once. */
#define STOCK_SLOT(n)							\
STOCK_BODY(slot##n, no_submit_bio)					\
static void notrace wrap_slot##n(struct bio *bio)			\
{									\
	struct stock_gate *gated = NULL;				\
									\
	if (!stock_show(bio, &gated))					\
		static_call(slot##n##_body)(bio);			\
	stock_shown(gated);						\
}									\
static void notrace redirect_slot##n(unsigned long ip,			\
				     unsigned long parent_ip,		\
				     struct ftrace_ops *ops,		\
				     struct ftrace_regs *fregs)		\
{									\
	struct bio *bio = (void *)ftrace_regs_get_argument(fregs, 0);	\
									\
	if (stock_disk_find(bio->bi_bdev->bd_disk))			\
		ftrace_regs_set_instruction_pointer(fregs,		\
					(unsigned long)wrap_slot##n);	\
}

STOCK_SLOT(0)
STOCK_SLOT(1)
STOCK_SLOT(2)
STOCK_SLOT(3)
STOCK_SLOT(4)
STOCK_SLOT(5)
STOCK_SLOT(6)
STOCK_SLOT(7)
STOCK_SLOT(8)
STOCK_SLOT(9)
STOCK_SLOT(10)
STOCK_SLOT(11)

/**
 * struct stock_slot - a function that takes bios
 * @hook: its hook
 * @submit_bio: that of the driver; NULL in the first slot, of request based ones
 * @refs: filters of disks whose bios it takes
 * @generation: how often it has been hooked
 * @leads_to: the driver's function that a task in the wrapper may be on its way to
 */
struct stock_slot {
	struct stock_hook hook;
	void (*submit_bio)(struct bio *bio);
	atomic_t refs;
	unsigned int generation;
	void (*leads_to)(struct bio *bio);
};

#define STOCK_SLOT_INIT(n) {						\
	.hook = {							\
		.ops = {						\
			.func = redirect_slot##n,			\
			.flags = STOCK_REDIRECT_FLAGS,			\
		},							\
		.set_body = set_slot##n##_body,				\
	},								\
}

static struct stock_slot stock_slots[] = {
	STOCK_SLOT_INIT(0), STOCK_SLOT_INIT(1), STOCK_SLOT_INIT(2),
	STOCK_SLOT_INIT(3), STOCK_SLOT_INIT(4), STOCK_SLOT_INIT(5),
	STOCK_SLOT_INIT(6), STOCK_SLOT_INIT(7), STOCK_SLOT_INIT(8),
	STOCK_SLOT_INIT(9), STOCK_SLOT_INIT(10), STOCK_SLOT_INIT(11),
};

/* Held while slots change, but for refs. */
static DEFINE_MUTEX(stock_slots_mutex);

static void no_resubmit(struct bio *bio, bool split)
{
	bio_io_error(bio);
}

STOCK_BODY(resubmit, no_resubmit)

/**
 * stock_submit_setup - find what lets a bio go on that was held
 *
 * Context: Process context.
 * Return: 0 or -EOPNOTSUPP.
 */
int stock_submit_setup(void)
{
	unsigned long ip = stock_find_call("submit_bio_noacct_nocheck");

	if (!ip) {
		pr_err("submit_bio_noacct_nocheck() is not in this kernel\n");
		return -EOPNOTSUPP;
	}
	set_resubmit_body(ip);
	return 0;
}

/* As the kernel does with what is throttled.  It is not charged a second time. */
void blk_front_resubmit(struct bio *bio)
{
	static_call(resubmit_body)(bio, false);
}

static struct stock_slot *stock_slot_of(struct gendisk *disk)
{
	unsigned int i;

	if (!disk->fops->submit_bio)
		return &stock_slots[0];
	for (i = 1; i < ARRAY_SIZE(stock_slots); i++)
		if (READ_ONCE(stock_slots[i].submit_bio) == disk->fops->submit_bio)
			return &stock_slots[i];
	return NULL;
}

static struct stock_slot *stock_slot_that(void (*leads_to)(struct bio *bio))
{
	unsigned int i;

	for (i = 1; i < ARRAY_SIZE(stock_slots); i++)
		if (!stock_slots[i].hook.ip && stock_slots[i].leads_to == leads_to)
			return &stock_slots[i];
	return NULL;
}

/* A slot in which no task is on its way to another function. */
static struct stock_slot *stock_slot_new(struct gendisk *disk)
{
	struct stock_slot *slot = stock_slot_that(disk->fops->submit_bio);
	unsigned int i;

	if (!slot)
		slot = stock_slot_that(NULL);
	if (slot)
		return slot;
	/* As many drivers had disks with filters, at one time or another. */
	if (!stock_count_wait(&stock_tasks, 10 * HZ))
		return NULL;
	for (i = 1; i < ARRAY_SIZE(stock_slots); i++)
		if (!stock_slots[i].hook.ip)
			stock_slots[i].leads_to = NULL;
	return stock_slot_that(NULL);
}

static int stock_slot_hook(struct stock_slot *slot, struct gendisk *disk)
{
	unsigned long ip;
	int ret;

	if (disk->fops->submit_bio) {
		ip = stock_find(NULL, disk->fops->submit_bio);
		if (!ip) {
			pr_err("%s: %ps cannot be traced in this kernel\n",
			       disk->disk_name, disk->fops->submit_bio);
			return -EOPNOTSUPP;
		}
	} else {
		slot->hook.name = "blk_mq_submit_bio";
		ip = stock_find(slot->hook.name, NULL);
	}
	ret = stock_hook_at(&slot->hook, ip);
	if (!ret) {
		WRITE_ONCE(slot->submit_bio, disk->fops->submit_bio);
		slot->leads_to = disk->fops->submit_bio;
		slot->generation++;
	}
	return ret;
}

/**
 * stock_submit_add - a filter is about to be attached
 * @disk: to this disk; there is an open file of it
 *
 * Context: Process context, with stock_mutex held.
 * Return: 0, or as stock_hook_at(); -EBUSY also if too many drivers are hooked.
 */
int stock_submit_add(struct gendisk *disk)
{
	struct stock_slot *slot;
	int ret = 0;

	mutex_lock(&stock_slots_mutex);
	slot = stock_slot_of(disk) ?: stock_slot_new(disk);
	if (!slot) {
		pr_err("%s: too many drivers have disks with filters\n",
		       disk->disk_name);
		ret = -EBUSY;
	} else if (!slot->hook.ip) {
		ret = stock_slot_hook(slot, disk);
	}
	if (!ret)
		atomic_inc(&slot->refs);
	mutex_unlock(&stock_slots_mutex);
	return ret;
}

/**
 * stock_submit_sub - a filter was taken off, or was not attached
 * @disk: the disk, for which stock_submit_add() had been called
 *
 * Context: Any.
 */
void stock_submit_sub(struct gendisk *disk)
{
	struct stock_slot *slot = stock_slot_of(disk);

	if (!WARN_ON(!slot))
		atomic_dec(&slot->refs);
}

/**
 * stock_submit_generation - know whether a function was hooked all the time
 * @disk: of which a filter is attached, or about to be
 *
 * Context: Any.
 * Return: A number other than 0, which is another one if the function that takes the
 * disk's bios was unhooked meanwhile.
 */
unsigned int stock_submit_generation(struct gendisk *disk)
{
	struct stock_slot *slot = stock_slot_of(disk);

	return slot ? slot->generation : 0;
}

/* With stock_slots_mutex held. */
static void stock_slot_unhook(struct stock_slot *slot)
{
	stock_unhook(&slot->hook);
	WRITE_ONCE(slot->submit_bio, NULL);
}

/**
 * stock_submit_settle - unhook the functions that no disk with a filter has
 *
 * Context: Process context, with stock_mutex held.
 */
void stock_submit_settle(void)
{
	unsigned int i;

	mutex_lock(&stock_slots_mutex);
	for (i = 0; i < ARRAY_SIZE(stock_slots); i++)
		if (!atomic_read(&stock_slots[i].refs))
			stock_slot_unhook(&stock_slots[i]);
	mutex_unlock(&stock_slots_mutex);
}

/**
 * stock_submit_forget - the code of a module is about to be freed
 * @mod: the module; another one may get the same address
 *
 * Its disks have gone, and so have their filters.
 *
 * Context: Process context.
 */
void stock_submit_forget(struct module *mod)
{
	unsigned int i;

	mutex_lock(&stock_slots_mutex);
	for (i = 1; i < ARRAY_SIZE(stock_slots); i++)
		if (within_module((unsigned long)stock_slots[i].leads_to, mod)) {
			stock_slot_unhook(&stock_slots[i]);
			/* No task is on its way to code that is freed. */
			stock_slots[i].leads_to = NULL;
		}
	mutex_unlock(&stock_slots_mutex);
}
