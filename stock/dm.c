// SPDX-License-Identifier: GPL-2.0
/*
 * Device mapper: a table that replaces another one may map other data.
 *
 * Tables that map the same data are the rule (a device is extended, a path has come
 * back): they are compared, and what cannot be compared counts as other data.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device-mapper.h>
#include <linux/slab.h>
#include "stock.h"

static struct dm_table *no_dm_get_live_table(struct mapped_device *md, int *idx)
{
	return NULL;
}

static void no_dm_put_live_table(struct mapped_device *md, int idx)
{
}

static struct gendisk *no_dm_disk(struct mapped_device *md)
{
	return NULL;
}

static struct dm_table *no_dm_swap_table(struct mapped_device *md,
					 struct dm_table *table)
{
	return ERR_PTR(-EINVAL);
}

static sector_t no_dm_table_get_size(struct dm_table *t)
{
	return 0;
}

static struct dm_target *no_dm_table_find_target(struct dm_table *t,
						 sector_t sector)
{
	return NULL;
}

STOCK_CALL(dm_get_live_table, no_dm_get_live_table)
STOCK_CALL(dm_put_live_table, no_dm_put_live_table)
STOCK_CALL(dm_disk, no_dm_disk)
STOCK_CALL(dm_table_get_size, no_dm_table_get_size)
STOCK_CALL(dm_table_find_target, no_dm_table_find_target)
STOCK_BODY(dm_swap_table, no_dm_swap_table)

/* The place on a device that a linear target begins at. */
struct dm_linear_start {
	struct dm_dev *dev;
	sector_t sector;
	bool several;
};

static int get_linear_start(struct dm_target *ti, struct dm_dev *dev,
			    sector_t start, sector_t len, void *data)
{
	struct dm_linear_start *found = data;

	found->several |= found->dev &&
		(found->dev != dev || found->sector != start);
	found->dev = dev;
	found->sector = start;
	return 0;
}

static bool is_linear_at(struct dm_target *ti, sector_t sector,
			 struct dm_linear_start *found)
{
	if (strcmp(ti->type->name, "linear") && strcmp(ti->type->name, "delay"))
		return false;
	*found = (struct dm_linear_start){};
	ti->type->iterate_devices(ti, get_linear_start, found);
	found->sector += sector - ti->begin;
	return found->dev && !found->several;
}

static bool are_same_targets(struct dm_target *a, struct dm_target *b)
{
	const size_t size = PAGE_SIZE;
	char *lines;
	bool same;

	if (a->type != b->type || a->begin != b->begin || a->len != b->len)
		return false;
	/* Whatever the path, the data is the same. */
	if (!strcmp(a->type->name, "multipath"))
		return true;
	if (!a->type->status)
		return false;

	lines = kzalloc(2 * size, GFP_NOIO);
	if (!lines)
		return false;
	a->type->status(a, STATUSTYPE_TABLE, 0, lines, size);
	b->type->status(b, STATUSTYPE_TABLE, 0, lines + size, size);
	/* A line that is too long may have been cut before the difference. */
	same = strnlen(lines, size) < size - 1 && !strcmp(lines, lines + size);
	/* There may be keys in them. */
	kfree_sensitive(lines);
	return same;
}

/*
 * Whether a device whose table @old is replaced by @new has the same data as before in
 * all sectors that it had and will have.  When in doubt it has not.
 */
static bool has_same_data(struct dm_table *old, struct dm_table *new)
{
	sector_t end = min(static_call(dm_table_get_size_body)(old),
			   static_call(dm_table_get_size_body)(new));
	struct dm_linear_start start_a, start_b;
	sector_t sector = 0;

	while (sector < end) {
		struct dm_target *a, *b;

		a = static_call(dm_table_find_target_body)(old, sector);
		b = static_call(dm_table_find_target_body)(new, sector);
		if (!a || !b)
			return false;
		if (is_linear_at(a, sector, &start_a) &&
		    is_linear_at(b, sector, &start_b)) {
			if (start_a.dev->bdev != start_b.dev->bdev ||
			    start_a.sector != start_b.sector)
				return false;
		} else if (!are_same_targets(a, b)) {
			return false;
		}
		sector = min(a->begin + a->len, b->begin + b->len);
	}
	return true;
}

/* The device is suspended, or the table is not taken: no bio is under way. */
static notrace struct dm_table *wrap_dm_swap_table(struct mapped_device *md,
						   struct dm_table *table)
{
	struct dm_table *live, *old;
	int idx;

	stock_count_in(&stock_tasks);
	live = static_call(dm_get_live_table_body)(md, &idx);
	if (live && !has_same_data(live, table))
		blk_filter_replace_data(static_call(dm_disk_body)(md));
	static_call(dm_put_live_table_body)(md, idx);
	old = static_call(dm_swap_table_body)(md, table);
	stock_count_out(&stock_tasks);
	return old;
}

STOCK_REDIRECT(dm_swap_table);

static bool find_dm(void)
{
	return find_dm_get_live_table() && find_dm_put_live_table() &&
	       find_dm_disk() && find_dm_table_get_size() &&
	       find_dm_table_find_target();
}

static bool drives_dm(struct gendisk *disk)
{
	return str_has_prefix(disk->disk_name, "dm-");
}

const struct stock_replacing stock_dm = {
	.hook = &hook_dm_swap_table,
	.find = find_dm,
	.drives = drives_dm,
};
