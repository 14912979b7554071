// SPDX-License-Identifier: GPL-2.0
/*
 * What came of a command is compared with what may come of it: the error, the answer, and where the
 * kernel has written to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <time.h>
#include "command.h"

const struct device *device_of(struct blk_snap_dev_t id)
{
	for (unsigned int i = 0; i < device_count; i++)
		if (devices[i].id.mj == id.mj && devices[i].id.mn == id.mn)
			return &devices[i];
	return NULL;
}

/* What the kernel may have written to the arguments; the rest must be as it was. */
static unsigned int allowed(const struct call *call, const union args *after, long result, int error,
			    struct written *to)
{
	const struct shape *shape = call->shape;
	unsigned int n = 0;
	uint32_t items = call->count;

#define MAY(offset, length) (to[n++] = (struct written){ call->address + (offset), (length) })
	if (call->unknown || call->cut)
		return 0;
	if (error == EFAULT || !error) {
		if (call->nr == 0)
			MAY(0, shape->size);
		if (call->nr == CREATE)
			MAY(offsetof(struct blk_snap_snapshot_create, id), 16);
		if (call->nr == WAIT) {
			MAY(offsetof(struct blk_snap_snapshot_event, code), 12);
			MAY(32, !error && !after->event.code ? sizeof(struct blk_snap_event_low_free_space) :
			    sizeof(struct blk_snap_event_corrupted));
		}
	}
	if (shape->fills && call->nr != READ_CBT_MAP &&
	    (!error || error == EFAULT || error == ENOBUFS || error == ENODATA))
		MAY(shape->count_at, 4);
#undef MAY
	if (shape->fills && (!error || error == EFAULT)) {
		if (!error && call->nr == READ_CBT_MAP)
			items = result;
		else if (!error)
			memcpy(&items, after->bytes + shape->count_at, 4);
		to[n++] = (struct written){ call->array, (size_t)(items < ROOM ? items : ROOM) * shape->item };
	}
	return n;
}

static int is_random(const struct blk_snap_uuid *id)
{
	return id->b[6] >> 4 == 4 && id->b[8] >> 6 == 2;
}

static int is_known(struct blk_snap_dev_t id)
{
	return device_of(id) || (id.mj == storage.mj && id.mn == storage.mn);
}

static void check_tracker(const struct blk_snap_cbt_info *info)
{
	const char *bytes = (const char *)info;
	unsigned int hole = offsetof(struct blk_snap_cbt_info, blk_size) + 4;

	want(is_known(info->dev_id) && is_random(&info->generation_id));
	want(info->blk_size >= SECTOR && !(info->blk_size & (info->blk_size - 1)));
	want(info->blk_count == (info->device_capacity + info->blk_size - 1) / info->blk_size);
	want(info->snap_number < 255);
	for (; hole < offsetof(struct blk_snap_cbt_info, device_capacity); hole++)
		want(!bytes[hole]);
	for (hole = offsetof(struct blk_snap_cbt_info, snap_number) + 1; hole < sizeof(*info); hole++)
		want(!bytes[hole]);
}

static void check_event(const struct blk_snap_snapshot_event *event)
{
	struct blk_snap_event_corrupted corrupted;
	struct blk_snap_event_low_free_space low;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	want(event->time_label > 0 && event->time_label <= now.tv_sec * 1000000000ll + now.tv_nsec);
	memcpy(&corrupted, event->data, sizeof(corrupted));
	memcpy(&low, event->data, sizeof(low));
	if (event->code == blk_snap_event_code_low_free_space)
		want(low.requested_nr_sect > 0 && low.requested_nr_sect < 1ull << 40);
	else
		want(event->code == blk_snap_event_code_corrupted && is_known(corrupted.orig_dev_id) &&
		     corrupted.err_code > 0 && corrupted.err_code < MAX_ERRNO);
}

/* What was answered makes sense; ids are kept for later commands. */
static void check_answer(struct worker *worker, const struct call *call, const union args *after, long result)
{
	uint32_t count = 0;

	want(call->nr == READ_CBT_MAP ? (unsigned long)result <= call->count : result == 0);
	if (call->nr == 0)
		want(after->version.major == 1 && !after->version.minor);
	if (call->nr == CREATE) {
		want(is_random(&after->create.id));
		shared->ids[below(&worker->rng, MAX_IDS)] = after->create.id;
	}
	if (call->nr == WAIT)
		check_event(&after->event);
	if (!call->shape->fills || call->nr == READ_CBT_MAP)
		return;
	memcpy(&count, after->bytes + call->shape->count_at, 4);
	want(count < 1000 && (!call->array || count <= call->count));
	if (!room_has(&worker->array, call->array, count * call->shape->item))
		return;
	for (uint32_t i = 0; i < count; i++) {
		const char *item = (const char *)call->array + i * call->shape->item;
		struct blk_snap_cbt_info info;
		struct blk_snap_image_info image;
		struct blk_snap_uuid id;

		if (call->nr == TRACKER_COLLECT) {
			memcpy(&info, item, sizeof(info));
			check_tracker(&info);
		} else if (call->nr == COLLECT) {
			memcpy(&id, item, sizeof(id));
			want(is_random(&id));
			shared->ids[below(&worker->rng, MAX_IDS)] = id;
		} else {
			memcpy(&image, item, sizeof(image));
			want(is_known(image.orig_dev_id) && image.image_dev_id.mj == image_major);
			want(image.image_dev_id.mn < 64);
		}
	}
}

static int is_plausible(const struct call *call, int error)
{
	if (call->unknown)
		return error == ENOTTY;
	if (call->cut)
		return error == EFAULT;
	if (!error)
		return 1;
	if (error == EFAULT)
		return call->hostile || call->nr == TAKE;
	for (unsigned int i = 0; i < sizeof(call->shape->errors); i++)
		if (call->shape->errors[i] == error)
			return 1;
	return 0;
}

void judge(struct worker *worker, const struct call *call, const char *placed, long result, int error)
{
	struct written ranges[4];
	union args after;
	unsigned int n;
	int at;

	memset(&after, 0, sizeof(after));
	memcpy(&after, call->common ? (char *)call->address : placed, call->shape->size);
	if (!is_plausible(call, error))
		die("%s, command %llu: %#x (count %#x, array %#lx, at %#lx): result %ld, %s", worker->name,
		    (unsigned long long)worker->made, call->word, call->count, (long)call->array,
		    (long)call->address, result, strerror(error));
	if (call->common) {
		if (!error && call->nr == CREATE)
			shared->ids[below(&worker->rng, MAX_IDS)] = after.create.id;
		return;
	}
	n = allowed(call, &after, result, error, ranges);
	at = room_changed(&worker->args, ranges, n);
	if (at < 0)
		at = room_changed(&worker->array, ranges, n);
	if (at >= 0)
		die("%s, command %llu: %#x (count %#x, array %#lx, at %#lx): result %ld, %s: "
		    "the byte at %#x of its memory was written", worker->name,
		    (unsigned long long)worker->made, call->word, call->count, (long)call->array,
		    (long)call->address, result, strerror(error), at);
	if (!error && !call->unknown)
		check_answer(worker, call, &after, result);
}
