// SPDX-License-Identifier: GPL-2.0
/*
 * One command: made valid, as far as anybody can know while others give commands too; then, now and
 * then, spoilt; and given.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "command.h"

#define WITHOUT(NAME, type) \
	.word = IOCTL_BLK_SNAP_##NAME, .size = sizeof(struct blk_snap_##type)
#define WITH(NAME, type, counter, array) WITHOUT(NAME, type), \
	.count_at = offsetof(struct blk_snap_##type, counter), \
	.array_at = offsetof(struct blk_snap_##type, array), \
	.item = sizeof(*((struct blk_snap_##type *)0)->array)

/* All other commands wait for those with less weight, which take long. */
#define RARE 10

static const struct shape shapes[COMMANDS] = {
	[0] = { WITHOUT(VERSION, version), .weight = 80 },
	[1] = { WITHOUT(TRACKER_REMOVE, tracker_remove), .weight = 2,
		.errors = { ENODATA, EBUSY, ENXIO, ENODEV } },
	[2] = { WITH(TRACKER_COLLECT, tracker_collect, count, cbt_info_array), .fills = 1, .weight = 160,
		.errors = { ENOBUFS } },
	[3] = { WITH(TRACKER_READ_CBT_MAP, tracker_read_cbt_bitmap, length, buff), .fills = 1, .weight = 240,
		.errors = { ENODATA, EPERM } },
	[4] = { WITH(TRACKER_MARK_DIRTY_BLOCKS, tracker_mark_dirty_blocks, count, dirty_blocks_array),
		.weight = 160, .errors = { ENODEV, EINVAL, ENOMEM } },
	[5] = { WITH(SNAPSHOT_CREATE, snapshot_create, count, dev_id_array), .weight = 6,
		.errors = { EINVAL, EBUSY, ENXIO, ENODEV, EOPNOTSUPP, ENOMEM } },
	[6] = { WITHOUT(SNAPSHOT_DESTROY, snapshot_destroy), .weight = 2, .errors = { ENODEV } },
	[7] = { WITH(SNAPSHOT_APPEND_STORAGE, snapshot_append_storage, count, ranges), .weight = 160,
		.errors = { ESRCH, EINVAL, ENXIO, ENODEV, EROFS, EOPNOTSUPP, ENOMEM } },
	[8] = { WITHOUT(SNAPSHOT_TAKE, snapshot_take), .weight = 6,
		.errors = { ESRCH, EALREADY, ENODEV, EINTR, ENOMEM } },
	[9] = { WITH(SNAPSHOT_COLLECT, snapshot_collect, count, ids), .fills = 1, .weight = 160,
		.errors = { ENODATA } },
	[10] = { WITH(SNAPSHOT_COLLECT_IMAGES, snapshot_collect_images, count, image_info_array),
		 .fills = 1, .weight = 240, .errors = { ESRCH, ENODEV, ENODATA } },
	[11] = { WITHOUT(SNAPSHOT_WAIT_EVENT, snapshot_event), .weight = 160,
		 .errors = { ENOENT, EINTR, ESRCH } },
};

static struct blk_snap_dev_t some_device(struct rng *rng)
{
	const struct blk_snap_dev_t others[] = {
		storage, { 0, 0 }, { image_major, below(rng, 4) }, { ~0u, ~0u }, { 1, 1u << 20 },
		{ 10, below(rng, 256) }, { 4096, 0 }, { devices[0].id.mj, ~0u },
	};

	if (one_in(rng, 12))
		return others[below(rng, sizeof(others) / sizeof(*others))];
	return devices[below(rng, device_count)].id;
}

static struct blk_snap_uuid some_id(struct rng *rng)
{
	struct blk_snap_uuid id = shared->ids[below(rng, MAX_IDS)];

	if (one_in(rng, 24))
		id.b[below(rng, 16)] ^= 1 << below(rng, 8);
	return id;
}

static void put_count(struct call *call, uint32_t count)
{
	call->count = count;
	memcpy(call->args.bytes + call->shape->count_at, &count, sizeof(count));
}

static void put_array(struct call *call, uintptr_t address)
{
	call->array = address;
	memcpy(call->args.bytes + call->shape->array_at, &address, sizeof(address));
}

/* Ranges of a device: to be marked, or to be storage. What has stamps is no storage. */
static void put_ranges(struct call *call, struct rng *rng, struct blk_snap_block_range *ranges)
{
	struct blk_snap_dev_t id = call->nr == APPEND ? call->args.append.dev_id : call->args.mark.dev_id;
	const struct device *device = device_of(id);
	uint64_t from = call->nr == APPEND && device ? (uint64_t)device->stamped * BLOCK / SECTOR : 0;
	uint64_t end = device ? device->sectors : storage_sectors;
	static const uint64_t bad[] = { ~0ull, 1ull << 63, 1ull << 55, 1ull << 40, ~0ull - 7 };

	for (uint32_t i = 0; i < call->count; i++) {
		struct blk_snap_block_range range = { from + next(rng) % ((end - from) / 8) * 8, 0 };

		range.sector_count = 1 + next(rng) % (end - range.sector_offset);
		if (call->nr == APPEND && range.sector_count > 2048)
			range.sector_count = 8 * (1 + below(rng, 256));
		if (one_in(rng, 24))
			range.sector_count = bad[below(rng, 5)];
		else if (one_in(rng, 24))
			range.sector_offset = bad[below(rng, 5)];
		else if (one_in(rng, 24))
			range.sector_count = 0;
		memcpy(&ranges[i], &range, sizeof(range));
	}
}

static unsigned int some_command(struct rng *rng)
{
	unsigned int weights = 0, nr;

	for (unsigned int i = 0; i < COMMANDS; i++)
		weights += shapes[i].weight;
	weights = below(rng, weights);
	for (nr = 0; weights >= shapes[nr].weight; nr++)
		weights -= shapes[nr].weight;
	return nr;
}

/* Whether it takes long, so that in a calm phase it is not to be given now. */
static int is_put_off(struct rng *rng, unsigned int nr)
{
	return !one_in(rng, shapes[nr].weight < RARE ? 16 : nr == APPEND ? 4 : 1);
}

/* A command as a client gives it. */
static void make(struct worker *worker, struct call *call)
{
	struct rng *rng = &worker->rng;
	char *array;

	do
		call->nr = some_command(rng);
	while (shared->calm && is_put_off(rng, call->nr));
	call->shape = &shapes[call->nr];
	call->word = call->shape->word;
	memset(&call->args, FILL, call->shape->size);
	switch (call->nr) {
	case 1: call->args.remove.dev_id = some_device(rng); break;
	case 3: call->args.map.dev_id = some_device(rng);
		call->args.map.offset = one_in(rng, 2) ? 0 : below(rng, 80);
		break;
	case 4: call->args.mark.dev_id = some_device(rng); break;
	case 6: call->args.destroy.id = some_id(rng); break;
	case 7: call->args.append.id = some_id(rng);
		call->args.append.dev_id = one_in(rng, 2) ? storage : some_device(rng);
		break;
	case 8: call->args.take.id = some_id(rng); break;
	case 10: call->args.images.id = some_id(rng); break;
	case 11: call->args.event.id = some_id(rng);
		call->args.event.timeout_ms = one_in(rng, 8) ? below(rng, 20) : 0;
		break;
	}
	if (!call->shape->item)
		return;
	put_count(call, call->nr == READ_CBT_MAP ? below(rng, 128) : call->nr == CREATE ?
		  1 + below(rng, 2) : below(rng, 6));
	array = room_place(&worker->array, rng, call->count * call->shape->item);
	put_array(call, (uintptr_t)array);
	if (call->nr == CREATE)
		for (uint32_t i = 0; i < call->count; i++) {
			struct blk_snap_dev_t id = some_device(rng);

			memcpy(array + i * sizeof(id), &id, sizeof(id));
		}
	else if (!call->shape->fills)
		put_ranges(call, rng, (struct blk_snap_block_range *)array);
	else if (one_in(rng, 4)) {
		put_array(call, 0);
		call->hostile = call->nr == READ_CBT_MAP;
	}
}

/* An unknown command that looks like a known one. */
static void spoil_word(struct rng *rng, struct call *call)
{
	call->unknown = 1;
	switch (below(rng, 4)) {
	case 0: call->word ^= 1u << below(rng, 32); break;
	case 1: call->word = (call->word & ~0xffu) | below(rng, 256); break;
	case 2: call->word ^= 1u << (16 + below(rng, 14)); break;
	default: call->word = next(rng);
	}
	for (unsigned int i = 0; i < COMMANDS; i++)
		if (call->word == shapes[i].word)
			call->word = 0x5600;
	/* second.c gives that one. */
	if (call->word == IOCTL_BLK_SNAP_UNUSED)
		call->word = 0x5600;
	/* Those that any file knows are not for the module. */
	if ((call->word >> 8 & 0xff) != 'V')
		call->word = 0x5620;
}

static void spoil(struct worker *worker, struct call *call)
{
	static const uint32_t counts[] = { 0, 1, 7, 4096, 4097, 1 << 20, (1 << 20) + 1, 1 << 28, 0x7fffffff,
					   0x80000000, 0x0fffffff, ~0u };
	struct rng *rng = &worker->rng;
	/* Storage must be where nothing else is. */
	int keep = call->nr == APPEND && device_of(call->args.append.dev_id);
	unsigned int at;

	call->hostile = 1;
	switch (below(rng, 6)) {
	case 0:
		if (call->shape->item)
			put_count(call, one_in(rng, 4) ? next(rng) :
				  counts[below(rng, sizeof(counts) / sizeof(*counts))]);
		break;
	case 1:
		if (!call->shape->item)
			break;
		if (keep || one_in(rng, 2))
			put_array(call, hostile_address(rng, &worker->array));
		else if (one_in(rng, 2))
			put_array(call, call->array + worker->array.read_only);
		else
			put_array(call, call->array + 1 + below(rng, 7));
		break;
	case 2:
		call->address = hostile_address(rng, &worker->args);
		call->cut = 1;
		break;
	case 3:
		call->address += worker->args.read_only;
		break;
	case 4:
		spoil_word(rng, call);
		break;
	default:
		/* Any byte, but for what says where the kernel writes to. */
		at = below(rng, call->nr == APPEND ? 16 : call->shape->size);
		if (!call->shape->item || at < call->shape->array_at ||
		    at >= call->shape->array_at + sizeof(void *))
			call->args.bytes[at] = next(rng);
		if (call->shape->item)
			memcpy(&call->count, call->args.bytes + call->shape->count_at, 4);
	}
}

/* Where other threads write to at the same time. */
static void share(struct worker *worker, struct call *call)
{
	size_t size = call->shape->item * (size_t)call->count;

	if (call->nr == APPEND || call->shape->fills || size > PAGE)
		return;
	if (call->shape->item) {
		memcpy(shared->page + PAGE, (void *)call->array, size);
		put_array(call, (uintptr_t)shared->page + PAGE);
	}
	call->address = (uintptr_t)shared->page + (call->nr == WAIT ? 0 : 8 * below(&worker->rng, 3));
	memcpy((void *)call->address, &call->args, call->shape->size);
	call->hostile = call->common = 1;
}

static int give(struct worker *worker, const struct call *call, long *result)
{
	*result = ioctl(worker->fds[below(&worker->rng, 4)], call->word, call->address);
	return *result < 0 ? errno : 0;
}

void fuzz_one(struct worker *worker)
{
	struct call call = { 0 };
	char *placed;
	long result;
	int error;

	if (one_in(&worker->rng, 64)) {
		int *fd = &worker->fds[1 + below(&worker->rng, 3)];

		close(*fd);
		*fd = open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR | O_CLOEXEC);
		want(*fd >= 0);
	}
	make(worker, &call);
	placed = room_place(&worker->args, &worker->rng, call.shape->size);
	call.address = (uintptr_t)placed;
	if (one_in(&worker->rng, 3))
		spoil(worker, &call);
	else if (one_in(&worker->rng, 24))
		share(worker, &call);
	memcpy(placed, &call.args, call.shape->size);
	room_remember(&worker->args);
	room_remember(&worker->array);
	error = give(worker, &call, &result);
	worker->made++;
	atomic_fetch_add_explicit(&shared->commands, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&shared->outcome[call.unknown ? COMMANDS : call.nr][error < MAX_ERRNO ? error : 1],
				  1, memory_order_relaxed);
	judge(worker, &call, placed, result, error);
	room_clear(&worker->args);
	room_clear(&worker->array);
}
