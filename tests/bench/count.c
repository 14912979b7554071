// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for qemu's emulator that counts the instructions of the guest.
 *
 * Time in an emulated machine on a shared host says little; how many instructions an I/O
 * takes is exact, and the same in each run. The guest executes a mark, see MARK below, before
 * and after what is to be counted; at a mark this writes what was executed since the last
 * one, as lines of "address count", to the file given as `out=`:
 *
 *	mark 17
 *	ffffffff81234560 4096
 *
 * Each address begins a block of instructions without a jump into it, so that all of them
 * belong to one function of the guest. For one processor: the counters are not atomic.
 *
 * With `cache=1` all accesses to memory go through the model of caches in cache.h, and a line has
 * what missed each of its levels behind, in their order there: of the instruction at that address.
 *
 * Linked as a program of its own (-DMARK_PROGRAM) it is what executes a mark.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"

/* nopl MARK(%rax), where the low 16 bits of MARK are the number. */
#define MARK 0x5eed0000u

#ifdef MARK_PROGRAM

#include <sys/mman.h>

int main(int argc, char **argv)
{
	uint32_t number = MARK | (argc > 1 ? strtoul(argv[1], NULL, 10) & 0xffff : 0);
	unsigned char code[] = { 0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0xc3 };
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("mark: mmap");
		return 1;
	}
	memcpy(code + 3, &number, sizeof(number));
	memcpy(at, code, sizeof(code));
	((void (*)(void))at)();
	return 0;
}

#else

/* qemu's plugin interface, version 1; Debian has no header of it. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
int qemu_plugin_version = 1;

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    void (*cb)(unsigned int, void *), int flags, void *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *ptr,
					      uint64_t imm);
struct qemu_plugin_hwaddr;
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
				      void (*cb)(unsigned int, uint32_t, uint64_t, void *),
				      int flags, int rw, void *data);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *hwaddr);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *hwaddr);

/* What was executed from one address on. Never freed: translated code points to it. */
struct block {
	uint64_t address;
	uint64_t instructions;
	uint64_t misses[LEVELS];
	struct block *next;
};

#define BUCKETS (1 << 18)
static struct block *blocks[BUCKETS];
static FILE *out;
static bool with_cache;

static struct block *find_block(uint64_t address)
{
	struct block **at = &blocks[(address ^ address >> 18) % BUCKETS];

	while (*at && (*at)->address != address)
		at = &(*at)->next;
	if (!*at) {
		*at = calloc(1, sizeof(**at));
		if (!*at)
			abort();
		(*at)->address = address;
	}
	return *at;
}

static void mark(unsigned int vcpu, void *number)
{
	fprintf(out, "mark %u\n", (unsigned int)(uintptr_t)number);
	for (size_t i = 0; i < BUCKETS; i++) {
		for (struct block *block = blocks[i]; block; block = block->next) {
			uint64_t any = block->instructions;

			for (int level = 0; level < LEVELS; level++)
				any |= block->misses[level];
			if (!any)
				continue;
			fprintf(out, "%" PRIx64 " %" PRIu64, block->address, block->instructions);
			for (int level = 0; with_cache && level < LEVELS; level++)
				fprintf(out, " %" PRIu64, block->misses[level]);
			fputc('\n', out);
			block->instructions = 0;
			memset(block->misses, 0, sizeof(block->misses));
		}
	}
	fflush(out);
}

/* Linux maps all memory, from here on, by pages of 2 MiB or more. */
#define DIRECT_MAP 0xffff880000000000u
#define DIRECT_MAP_END 0xffffc80000000000u

static void accessed(unsigned int vcpu, uint32_t info, uint64_t address, void *block)
{
	const struct qemu_plugin_hwaddr *hwaddr = qemu_plugin_get_hwaddr(info, address);
	bool large = address >= DIRECT_MAP && address < DIRECT_MAP_END;

	if (hwaddr && !qemu_plugin_hwaddr_is_io(hwaddr))
		touch(qemu_plugin_hwaddr_phys_addr(hwaddr),
		      large ? 1ull << 48 | address >> 21 : address >> 12,
		      ((struct block *)block)->misses);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	struct block *block = find_block(qemu_plugin_tb_vaddr(tb));

	qemu_plugin_register_vcpu_tb_exec_inline(tb, 0 /* add */, &block->instructions, count);
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const unsigned char *code = qemu_plugin_insn_data(insn);
		uint32_t number;

		if (with_cache)
			qemu_plugin_register_vcpu_mem_cb(insn, accessed, 0 /* no registers */, 3 /* both */,
							 find_block(qemu_plugin_insn_vaddr(insn)));
		if (qemu_plugin_insn_size(insn) != 7 || memcmp(code, "\x0f\x1f\x80", 3))
			continue;
		memcpy(&number, code + 3, sizeof(number));
		if ((number & 0xffff0000) == MARK)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, mark, 0,
							       (void *)(uintptr_t)(number & 0xffff));
	}
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
		with_cache |= !strcmp(argv[i], "cache=1");
	}
	if (!out) {
		fprintf(stderr, "count: out=FILE is missing or cannot be written\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}

#endif
