/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What hooks have to know of the processor, in one place: where ftrace patches a
 * function, how a wrapper goes on behind that, and when all processors see what was
 * patched.
 */
#ifndef _STOCK_ARCH_H
#define _STOCK_ARCH_H

#include <linux/kprobes.h>
#include <linux/smp.h>
#include <linux/static_call.h>

#ifndef CONFIG_DYNAMIC_FTRACE_WITH_ARGS
#error "ftrace of this kernel shows no arguments: CONFIG_DYNAMIC_FTRACE_WITH_ARGS is not set"
#endif

#if defined(CONFIG_X86_64)

/*
 * The first instruction behind an ENDBR is the ftrace call.  To what follows there has
 * to be a direct call, as an indirect one would fault where the processor checks for
 * ENDBR: so static_call() has to patch them in.
 */
#ifndef CONFIG_HAVE_STATIC_CALL
#error "calls of this kernel cannot be patched: CONFIG_HAVE_STATIC_CALL is not set"
#endif

/* Where ftrace patches the function that a probe is at the beginning of, or 0. */
static inline unsigned long stock_arch_ip(const struct kprobe *probe)
{
	return probe->flags & KPROBE_FLAG_FTRACE ? (unsigned long)probe->addr : 0;
}

/* Who patches code waits until each processor has seen it. */
static inline void stock_arch_sync(void)
{
}

#elif defined(CONFIG_ARM64)

/*
 * A function begins with two instructions for ftrace, of which the second one is the
 * call.  Behind it everything is as at the beginning: arguments, stack and x30 are
 * those of the call, x9 to x17 are nobody's, and the return address is signed after it.
 * static_call() calls by a pointer here, which may point there: unless the processor
 * checks for BTI, or the caller for a hash in front of the function.
 */
#if defined(CONFIG_ARM64_BTI_KERNEL) || defined(CONFIG_CFI)
#error "this kernel checks where calls go: CONFIG_ARM64_BTI_KERNEL or CONFIG_CFI is set"
#endif

/*
 * A probe does not know what is ftrace's, as it does not use ftrace here.  Whether a
 * call is patched in at that place is what ftrace_set_filter_ip() says.
 */
static inline unsigned long stock_arch_ip(const struct kprobe *probe)
{
	return (unsigned long)probe->addr + AARCH64_INSN_SIZE;
}

/*
 * Who patches code does not wait for the other processors: one may still run what it
 * had fetched, or go on by what it had read ahead.  An interrupt ends both.
 */
static inline void stock_arch_sync(void)
{
	kick_all_cpus_sync();
}

#else
#error "hooks are for x86-64 and arm64"
#endif

#endif /* _STOCK_ARCH_H */
