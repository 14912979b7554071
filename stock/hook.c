// SPDX-License-Identifier: GPL-2.0
/*
 * Hooks: let calls of a function of the kernel come by here first.
 *
 * ftrace calls a callback of ours at the beginning of the function.  It only looks at
 * the arguments; or it sends the caller to a wrapper (IPMODIFY), which goes on behind
 * the ftrace call in the function's body when it likes.  Only one may do the latter
 * with a function, livepatch for one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "arch.h"
#include "stock.h"

/*
 * Where a function begins, behind an ENDBR, or, if @traced, where ftrace would patch it;
 * 0 if there is none of the name.  Of several it is the first one, so that a name has to
 * be the only one.  A probe that is never armed knows, also for names that are not
 * exported.
 */
static unsigned long stock_probe(const char *name, const void *addr, bool traced)
{
	struct kprobe probe = {
		.symbol_name = name,
		.addr = (kprobe_opcode_t *)addr,
		.flags = KPROBE_FLAG_DISABLED,
	};
	unsigned long ip;

	if (register_kprobe(&probe))
		return 0;
	ip = traced ? stock_arch_ip(&probe) : (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return ip;
}

/**
 * stock_find - find where ftrace patches a function
 * @name: its name; or NULL
 * @addr: its address, if there is no name
 *
 * Context: Process context.
 * Return: The address, or 0 if there is no such function, or it cannot be traced, if
 * that can be known here.
 */
unsigned long stock_find(const char *name, const void *addr)
{
	return stock_probe(name, addr, true);
}

/**
 * stock_find_call - find a function that is only called
 * @name: its name
 *
 * Context: Process context.
 * Return: What a static call can go to, or 0 if there is no such function.
 */
unsigned long stock_find_call(const char *name)
{
	return stock_probe(name, NULL, false);
}

/**
 * stock_hook_at - begin to hook a function
 * @hook: the hook, which is not in use
 * @ip: what stock_find() says of the function
 *
 * Who has entered the function before is not seen.
 *
 * Context: Process context.
 * Return: 0; -EOPNOTSUPP if it cannot be traced; -EBUSY if somebody else redirects it;
 * another error of ftrace.  All but 0 were logged.
 */
int stock_hook_at(struct stock_hook *hook, unsigned long ip)
{
	int ret;

	if (!ip) {
		pr_err("%s cannot be traced in this kernel\n", hook->name);
		return -EOPNOTSUPP;
	}
	if (hook->set_body)
		hook->set_body(ip + MCOUNT_INSN_SIZE);
	/* Whom the hook sends to the wrapper sees there what was set before. */
	stock_arch_sync();
	ret = ftrace_set_filter_ip(&hook->ops, ip, 0, 0);
	/* Nothing of the function is there that it could patch. */
	if (ret == -EINVAL)
		ret = -EOPNOTSUPP;
	if (!ret)
		ret = register_ftrace_function(&hook->ops);
	if (!ret) {
		hook->ip = ip;
		/* From now on nobody goes by unseen. */
		stock_arch_sync();
		return 0;
	}
	ftrace_free_filter(&hook->ops);
	if (ret == -EBUSY)
		pr_err("%ps is redirected by another tracer or a live patch\n",
		       (void *)ip);
	else if (ret == -EOPNOTSUPP)
		pr_err("%ps cannot be traced in this kernel\n", (void *)ip);
	else
		pr_err("%ps cannot be hooked: error %d\n", (void *)ip, ret);
	return ret;
}

/**
 * stock_hook - begin to hook a function of the kernel by its name
 * @hook: the hook; nothing is done if it is in use
 *
 * Context: Process context.
 * Return: As stock_hook_at().
 */
int stock_hook(struct stock_hook *hook)
{
	if (hook->ip)
		return 0;
	return stock_hook_at(hook, stock_find(hook->name, NULL));
}

/**
 * stock_unhook - end that
 * @hook: the hook; nothing is done if it is not in use
 *
 * No callback runs when this returns.  Who was sent to the wrapper may be on the way
 * there, or in it.
 *
 * Context: Process context.
 */
void stock_unhook(struct stock_hook *hook)
{
	if (!hook->ip)
		return;
	WARN_ON(unregister_ftrace_function(&hook->ops));
	ftrace_free_filter(&hook->ops);
	hook->ip = 0;
}
