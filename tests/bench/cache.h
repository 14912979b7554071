/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A model of a processor's caches: what an access to memory finds there.
 *
 * Sets of lines, of which the one that was used longest ago makes room. Sizes are those of an AMD
 * EPYC (Zen 3), with the part of the last level that one core has where all are busy. It knows
 * nothing of prefetching, which hides much of what is read in order; so its figures say how much
 * memory the code touches anew, and not how long that takes.
 */
#ifndef BENCH_CACHE_H
#define BENCH_CACHE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define LINE_SHIFT 6
#define MOST_WAYS 16

enum level { L1, L2, L3, TLB, LEVELS };

static const char *const level_names[LEVELS] = { "L1", "L2", "L3", "TLB" };

/* Sets and ways: 32 KiB, 512 KiB, 4 MiB; 2048 pages. */
static const struct { unsigned int sets, ways; } shapes[LEVELS] = {
	[L1] = { 64, 8 }, [L2] = { 1024, 8 }, [L3] = { 4096, 16 }, [TLB] = { 256, 8 },
};

/* The tags of each set, the last used first. 0 is none. */
static uint64_t tags[LEVELS][4096][MOST_WAYS];

/* Whether the level has that line or page; from now on it has. */
static inline bool is_hit(enum level level, uint64_t line)
{
	uint64_t *set = tags[level][line % shapes[level].sets];
	unsigned int ways = shapes[level].ways;
	unsigned int at = 0;

	while (at < ways - 1 && set[at] != line + 1)
		at++;

	bool hit = set[at] == line + 1;

	memmove(set + 1, set, at * sizeof(*set));
	set[0] = line + 1;
	return hit;
}

/* One access, within a line: counts the levels that miss it in `misses`. */
static inline void touch(uint64_t physical, uint64_t page, uint64_t misses[LEVELS])
{
	uint64_t line = physical >> LINE_SHIFT;

	if (!is_hit(TLB, page))
		misses[TLB]++;
	for (enum level level = L1; level <= L3; level++) {
		if (is_hit(level, line))
			break;
		misses[level]++;
	}
}

#endif
