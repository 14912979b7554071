/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Block filters on a kernel that does not know of them.
 *
 * In the place of calls in the block layer there are hooks by ftrace.  What each file
 * is for:
 *
 *	front.c		what blk-filter.c asks of its front; what there is of each disk
 *	submit.c	sees each bio on its way to the driver
 *	gate.c		stops bios in front of the queue
 *	freeze.c	closes gates and freezes queues
 *	chain.c		the end of bios that end each other
 *	removal.c	disks and partitions that go, or get another size
 *	replaced.c	disks that get other data: dm.c, loop.c
 *	ioctl.c		how user space attaches and controls filters
 *	holder.c	which disk is made of which
 *	hook.c		ftrace
 *	arch.h		what that is on this processor
 *	module.c	the module's beginning and end
 *
 * Locks: stock_mutex, which is taken with none of those of blk-filter.c held, then the
 * lock of the kernel's module notifiers, then stock_slots_mutex.  Hooked functions take
 * none of these, as they are waited for with them held.
 */
#ifndef _STOCK_H
#define _STOCK_H

#include <linux/blk-filter.h>
#include <linux/blkdev.h>
#include <linux/ftrace.h>
#include <linux/static_call.h>
#include "blk-filter.h"

/* hook.c */

/**
 * struct stock_hook - a function of the kernel that is hooked
 * @name: of the function, to find it
 * @ops: of ftrace
 * @set_body: says where the function goes on behind its ftrace call, for who goes on
 *	there; NULL if the hook only looks
 * @ip: where ftrace patches it; 0 if it is not hooked
 */
struct stock_hook {
	const char *name;
	struct ftrace_ops ops;
	void (*set_body)(unsigned long body);
	unsigned long ip;
};

unsigned long stock_find(const char *name, const void *addr);
unsigned long stock_find_call(const char *name);
int stock_hook_at(struct stock_hook *hook, unsigned long ip);
int stock_hook(struct stock_hook *hook);
void stock_unhook(struct stock_hook *hook);

/*
 * PERMANENT: in kernels that can switch ftrace off, it is not while we are there.
 * Without RECURSION the callback is called directly: a check for recursion could let a
 * bio by unseen.
 */
#define STOCK_REDIRECT_FLAGS	(FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT)

/*
 * What a wrapper calls to go on, with static_call(NAME_body): see arch.h.  @none is
 * called if the hook was never set, which does not happen.
 */
#define STOCK_BODY(name, none)						\
DEFINE_STATIC_CALL(name##_body, none);					\
static void set_##name##_body(unsigned long body)			\
{									\
	static_call_update(name##_body, (typeof(none) *)body);		\
}

/* For a function that is called by static_call(NAME_body), and not hooked. */
#define STOCK_CALL(name, none)						\
STOCK_BODY(name, none)							\
static bool find_##name(void)						\
{									\
	unsigned long ip = stock_find_call(#name);			\
									\
	if (ip)								\
		set_##name##_body(ip);					\
	return ip;							\
}

/* Sends all callers of a function to wrap_FN(). */
#define STOCK_REDIRECT(fn)						\
static void notrace redirect_##fn(unsigned long ip,			\
				    unsigned long parent_ip,		\
				    struct ftrace_ops *ops,		\
				    struct ftrace_regs *fregs)		\
{									\
	ftrace_regs_set_instruction_pointer(fregs,			\
					    (unsigned long)wrap_##fn);	\
}									\
static struct stock_hook hook_##fn = {					\
	.name = #fn,							\
	.ops = {							\
		.func = redirect_##fn,					\
		.flags = STOCK_REDIRECT_FLAGS,				\
	},								\
	.set_body = set_##fn##_body,					\
}

/* gate.c */

/**
 * struct stock_count - who is in something
 * @in: how many came, on each processor
 * @out: how many left
 */
struct stock_count {
	unsigned long __percpu *in;
	unsigned long __percpu *out;
};

int stock_count_init(struct stock_count *count);
void stock_count_free(struct stock_count *count);
bool stock_count_is_zero(struct stock_count *count);
bool stock_count_wait(struct stock_count *count, unsigned long timeout);

static inline void stock_count_in(struct stock_count *count)
{
	this_cpu_inc(*count->in);
}

static inline void stock_count_out(struct stock_count *count)
{
	/* Who reads that we are out sees what we did. */
	smp_mb();
	this_cpu_inc(*count->out);
}

/**
 * struct stock_gate - where the bios of a request based disk can be stopped
 * @inside: tasks between the decision about a bio and the end of its hand-over
 * @closed: number of stock_gate_close() not yet undone
 * @opened: woken when it is zero again
 * @left: woken when somebody leaves a closed gate
 */
struct stock_gate {
	struct stock_count inside;
	atomic_t closed;
	wait_queue_head_t opened;
	wait_queue_head_t left;
};

int stock_gate_init(struct stock_gate *gate);
void stock_gate_free(struct stock_gate *gate);
bool stock_gate_enter(struct stock_gate *gate, bool wait);
void stock_gate_leave(struct stock_gate *gate);
void stock_gate_close(struct stock_gate *gate);
unsigned long stock_gate_drain(struct stock_gate *gate, unsigned long timeout);
void stock_gate_open(struct stock_gate *gate);

/* front.c */

/**
 * struct stock_disk - what there is of a disk that has or had filters
 * @fd: for blk-filter.c
 * @node: in the table of disks
 * @disk: the key there; not to be followed
 * @gate: of a request based disk
 * @hooked: since which stock_submit_generation() all bios are counted by the gate
 * @free_work: frees it when the disk has gone
 * @unused: among those that are freed because nothing is hooked any more
 */
struct stock_disk {
	struct blk_filter_disk fd;
	struct hlist_node node;
	struct gendisk *disk;
	struct stock_gate gate;
	unsigned int hooked;
	struct work_struct free_work;
	struct list_head unused;
};

static inline struct stock_disk *to_stock_disk(struct blk_filter_disk *fd)
{
	return container_of(fd, struct stock_disk, fd);
}

/* The driver is called by its queue, and bios reach that without a gate. */
static inline bool stock_disk_is_bio_based(struct stock_disk *sd)
{
	return sd->fd.gate;
}

struct stock_disk *stock_disk_find(struct gendisk *disk);
void stock_disk_forget(struct gendisk *disk);
void stock_disk_iter_init(struct class_dev_iter *iter);
void stock_end(void);
extern struct stock_count stock_tasks;

/* submit.c */
int stock_submit_setup(void);
int stock_submit_add(struct gendisk *disk);
void stock_submit_sub(struct gendisk *disk);
unsigned int stock_submit_generation(struct gendisk *disk);
void stock_submit_settle(void);
void stock_submit_forget(struct module *mod);

/* ioctl.c */
int stock_ioctl_hook(void);
void stock_ioctl_unhook(void);

/* module.c: in the place of system_dfl_wq, for the kernel crate; see Kbuild */
extern struct workqueue_struct *stock_dfl_wq;

/* The driver's init_module() and cleanup_module(): see Kbuild. */
int driver_init_module(void);
void driver_cleanup_module(void);

/* chain.c */
void stock_chain_setup(void);

/* holder.c */
void stock_holder_wait(void);

/* removal.c */
int stock_removal_hook(struct gendisk *disk);
void stock_removal_unhook(void);

/**
 * struct stock_replacing - a driver that can give its disks other data without a bio
 * @hook: the function that does it
 * @find: finds what else is called; false if the driver is not there
 * @drives: whether a disk is one of this driver
 */
struct stock_replacing {
	struct stock_hook *hook;
	bool (*find)(void);
	bool (*drives)(struct gendisk *disk);
};

/* dm.c, loop.c */
extern const struct stock_replacing stock_dm;
extern const struct stock_replacing stock_loop;

/* replaced.c */
void stock_replaced_hook(void);
int stock_replaced_check(struct gendisk *disk);
void stock_replaced_forget(struct module *mod);
void stock_replaced_unhook(void);

#endif /* _STOCK_H */
