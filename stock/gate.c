// SPDX-License-Identifier: GPL-2.0
/*
 * Gates of request based disks: stop bios before they enter the queue.
 *
 * Our hook stands at the entry of blk_mq_submit_bio(), so before the queue is entered,
 * and a frozen queue does not mean that nobody is between a filter's decision and the
 * hand-over.  The gate does: a task is inside from before the decision until the
 * function has returned.  It is closed before the queue is frozen; the other way around
 * those inside would wait for the frozen queue, and the freezer for them.
 *
 * Not a percpu_ref: to kill that takes a grace period of RCU, for which the device
 * would stand still.
 */
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/wait.h>
#include "stock.h"

int stock_count_init(struct stock_count *count)
{
	count->in = alloc_percpu(unsigned long);
	count->out = alloc_percpu(unsigned long);
	if (count->in && count->out)
		return 0;
	stock_count_free(count);
	return -ENOMEM;
}

void stock_count_free(struct stock_count *count)
{
	free_percpu(count->in);
	free_percpu(count->out);
	count->in = NULL;
	count->out = NULL;
}

/**
 * stock_count_is_zero - whether all who came have left
 * @count: to which nobody is added any more, but for who goes again at once
 *
 * Who comes on one processor may leave on another.  As those who left are read first,
 * nobody's leaving is seen without the coming: so equal means none.
 *
 * Context: Any.
 * Return: Whether it is so; what they did is visible then.
 */
bool stock_count_is_zero(struct stock_count *count)
{
	unsigned long in = 0, out = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		out += READ_ONCE(*per_cpu_ptr(count->out, cpu));
	/* Pairs with stock_count_out(): the coming of whose leaving was read. */
	smp_mb();
	for_each_possible_cpu(cpu)
		in += READ_ONCE(*per_cpu_ptr(count->in, cpu));
	return in == out;
}

/**
 * stock_count_wait - wait for tasks in wrappers that nobody is sent to any more
 * @count: which they are in
 * @timeout: how long, in jiffies; MAX_SCHEDULE_TIMEOUT is forever
 *
 * Context: Process context; sleeps.
 * Return: Whether none is left.
 */
bool stock_count_wait(struct stock_count *count, unsigned long timeout)
{
	unsigned long end = jiffies + timeout;
	bool zero;

	/* Those on the way there are counted then: they have not slept yet. */
	synchronize_rcu_tasks();
	while (!(zero = stock_count_is_zero(count))) {
		if (timeout != MAX_SCHEDULE_TIMEOUT && time_after(jiffies, end))
			break;
		schedule_timeout_uninterruptible(1);
	}
	/* Those who were counted out have returned. */
	synchronize_rcu_tasks();
	return zero;
}

int stock_gate_init(struct stock_gate *gate)
{
	atomic_set(&gate->closed, 0);
	init_waitqueue_head(&gate->opened);
	init_waitqueue_head(&gate->left);
	return stock_count_init(&gate->inside);
}

void stock_gate_free(struct stock_gate *gate)
{
	stock_count_free(&gate->inside);
}

/**
 * stock_gate_enter - go through a gate
 * @gate: the gate, which may be closed
 * @wait: wait until it is open
 *
 * Context: Process context; may sleep if @wait.
 * Return: Whether the caller is inside now.
 */
bool stock_gate_enter(struct stock_gate *gate, bool wait)
{
	for (;;) {
		bool closed;

		/* One processor, so that a sum never misses one who is inside. */
		preempt_disable();
		this_cpu_inc(*gate->inside.in);
		/* Either we see it closed, or who closes it sees us. */
		smp_mb();
		closed = atomic_read(&gate->closed);
		if (closed)
			this_cpu_dec(*gate->inside.in);
		preempt_enable();
		if (!closed) {
			/* What was changed while it was closed is seen. */
			smp_acquire__after_ctrl_dep();
			return true;
		}
		/* We may have been counted. */
		wake_up(&gate->left);
		if (!wait)
			return false;
		/* Flushes the task's plug, whose requests hold the queue. */
		wait_event(gate->opened, !atomic_read(&gate->closed));
	}
}

/**
 * stock_gate_leave - leave again
 * @gate: the gate
 *
 * The disk, of which a bio may just have ended, can go meanwhile: a grace period of RCU
 * lies between that nobody is inside and that the gate is freed.
 *
 * Context: Process context.
 */
void stock_gate_leave(struct stock_gate *gate)
{
	rcu_read_lock();
	stock_count_out(&gate->inside);
	/* Either who waits sees the new count, or we see it closed. */
	smp_mb();
	if (unlikely(atomic_read(&gate->closed)))
		wake_up(&gate->left);
	rcu_read_unlock();
}

/**
 * stock_gate_close - let nobody in
 * @gate: the gate
 *
 * Context: Any.
 */
void stock_gate_close(struct stock_gate *gate)
{
	atomic_inc(&gate->closed);
	/* Pairs with that in stock_gate_enter(). */
	smp_mb__after_atomic();
}

/**
 * stock_gate_drain - wait for those inside
 * @gate: a gate that the caller has closed
 * @timeout: how long, in jiffies
 *
 * Context: Process context; sleeps.
 * Return: 0 if there still are some, or what is left of @timeout, at least 1.
 */
unsigned long stock_gate_drain(struct stock_gate *gate, unsigned long timeout)
{
	return wait_event_timeout(gate->left, stock_count_is_zero(&gate->inside),
				  timeout);
}

/**
 * stock_gate_open - undo stock_gate_close()
 * @gate: the gate
 *
 * Context: Any in which a waitqueue may be woken.
 */
void stock_gate_open(struct stock_gate *gate)
{
	/* What was changed while it was closed comes before: a full barrier. */
	if (atomic_dec_and_test(&gate->closed))
		wake_up_all(&gate->opened);
}
