// SPDX-License-Identifier: GPL-2.0
/*
 * Which basic blocks of the block filter and of blksnap have been run, for
 * tests/coverage.  KCOV keeps that for a task at a time; most of what matters
 * here is run by work items and by the completions of others' bios.  So each
 * block marks itself in one table, whoever runs it, in any context.
 *
 * An entry is an offset: of the return address of the block's call, from the
 * start of the kernel's text, or of the module's text or init text.  It stays
 * when the module is unloaded, and is the same wherever it is loaded.
 */
#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/hash.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <asm/sections.h>

/* Several times what there is: about 10000 blocks. */
#define TABLE_BITS	16

#define IN_TEXT		BIT(30)
#define IN_INIT_TEXT	BIT(31)

static u32 table[1 << TABLE_BITS];
static struct {
	unsigned long base;
	unsigned long size;
} text, init_text;

void __sanitizer_cov_trace_pc(void);

void notrace __sanitizer_cov_trace_pc(void)
{
	unsigned long ip = _RET_IP_;
	u32 entry, found, slot;

	if (ip - text.base < text.size)
		entry = IN_TEXT | (ip - text.base);
	else if (ip - init_text.base < init_text.size)
		entry = IN_INIT_TEXT | (ip - init_text.base);
	else
		entry = ip - (unsigned long)_stext;

	for (slot = hash_32(entry, TABLE_BITS);; slot = (slot + 1) % ARRAY_SIZE(table)) {
		found = READ_ONCE(table[slot]);
		if (!found)
			found = cmpxchg(&table[slot], 0, entry);
		if (!found || found == entry)
			return;
	}
}
EXPORT_SYMBOL_GPL(__sanitizer_cov_trace_pc);

/* Nothing of the module has been run yet when it is coming. */
static int blk_coverage_module(struct notifier_block *nb, unsigned long state, void *data)
{
	struct module *mod = data;

	if (state == MODULE_STATE_COMING && !strcmp(mod->name, "blksnap")) {
		text.base = (unsigned long)mod->mem[MOD_TEXT].base;
		text.size = mod->mem[MOD_TEXT].size;
		init_text.base = (unsigned long)mod->mem[MOD_INIT_TEXT].base;
		init_text.size = mod->mem[MOD_INIT_TEXT].size;
	}
	return NOTIFY_OK;
}

static struct notifier_block blk_coverage_notifier = {
	.notifier_call = blk_coverage_module,
};

static struct debugfs_blob_wrapper blk_coverage_blob = {
	.data = table,
	.size = sizeof(table),
};

static int __init blk_coverage_init(void)
{
	debugfs_create_blob("blk_coverage", 0400, NULL, &blk_coverage_blob);
	return register_module_notifier(&blk_coverage_notifier);
}
late_initcall(blk_coverage_init);
