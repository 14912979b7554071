// SPDX-License-Identifier: GPL-2.0
/*
 * One command of the interface of 2025, or of its other wrapping: made valid, as far as anybody can
 * know; then, now and then, spoilt; given; and its outcome compared with what may come of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/blk-filter.h>
#include <linux/types.h>
#include <linux/blksnap.h>
#include "fuzz.h"

/* The same in the wrapping of agents that bring their own module: with the device's path. */
struct wrapped_attach { __u64 path; __u8 name[BLKFILTER_NAME_LENGTH]; __u64 opt; __u32 optlen; };
struct wrapped_detach { __u64 path; __u8 name[BLKFILTER_NAME_LENGTH]; };
struct wrapped_ctl { __u64 path; __u8 name[BLKFILTER_NAME_LENGTH]; __u32 cmd, optlen; __u64 opt; };
#define WRAPPED(number, type) _IOWR('F', number, struct wrapped_##type)

/* Those that take a number of a command have one word. */
enum { VERSION, CREATE, DESTROY, TAKE, COLLECT, WAIT, BIND, UNUSED, ATTACH, DETACH, INFO, MAP, DIRTY, ADD, IMAGE,
       STAT };

static const char *const names[SECOND] = {
	"VERSION", "CREATE", "DESTROY", "TAKE", "COLLECT", "WAIT_EVENT", "BIND", "UNUSED", "ATTACH", "DETACH",
	"CBTINFO", "CBTMAP", "CBTDIRTY", "SNAPSHOTADD", "SNAPSHOTINFO", "STAT",
};

/* What is given to one command; where it is, and what the kernel may write to. */
struct second {
	unsigned int nr, word;
	int fd;
	union {
		struct blksnap_version version;
		struct blksnap_snapshot_create create;
		struct blksnap_uuid id;
		struct blksnap_snapshot_collect collect;
		struct blksnap_snapshot_event event;
		struct blksnap_unused unused;
		struct blkfilter_attach attach;
		struct blkfilter_detach detach;
		struct blkfilter_ctl ctl;
		struct wrapped_attach wrapped_attach;
		struct wrapped_detach wrapped_detach;
		struct wrapped_ctl wrapped_ctl;
		char bytes[PAGE];
	} args;
	unsigned int size;
	uintptr_t address;
	struct written may[4];
	unsigned int count;
	int hostile, cut, unknown;
};

static const struct {
	unsigned int word, size, weight;
	unsigned char errors[10];
} kinds[SECOND] = {
	[VERSION] = { IOCTL_BLKSNAP_VERSION, sizeof(struct blksnap_version), 40, { 0 } },
	[CREATE] = { IOCTL_BLKSNAP_SNAPSHOT_CREATE, sizeof(struct blksnap_snapshot_create), 8,
		     { EINVAL, EBUSY, ENOSPC, ENOENT, ENOMEM, EROFS, EACCES, ENOTDIR, ENAMETOOLONG, ENXIO } },
	[DESTROY] = { IOCTL_BLKSNAP_SNAPSHOT_DESTROY, sizeof(struct blksnap_uuid), 4, { ENODEV } },
	[TAKE] = { IOCTL_BLKSNAP_SNAPSHOT_TAKE, sizeof(struct blksnap_uuid), 4,
		   { ESRCH, EALREADY, ENODEV, EINTR, ENOMEM, EBUSY } },
	[COLLECT] = { IOCTL_BLKSNAP_SNAPSHOT_COLLECT, sizeof(struct blksnap_snapshot_collect), 80, { ENODATA } },
	[WAIT] = { IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, sizeof(struct blksnap_snapshot_event), 80,
		   { ENOENT, EINTR, ESRCH } },
	[BIND] = { IOCTL_BLKSNAP_BIND, 0, 4, { 0 } },
	[UNUSED] = { IOCTL_BLKSNAP_UNUSED, sizeof(struct blksnap_unused), 60,
		     { ESRCH, EPERM, ENODEV, ENOENT, EINVAL, EIO, ENOMEM } },
	[ATTACH] = { BLKFILTER_ATTACH, sizeof(struct blkfilter_attach), 6, { EALREADY, EINVAL, ENOENT, ENODEV, ENOMEM } },
	[DETACH] = { BLKFILTER_DETACH, sizeof(struct blkfilter_detach), 2, { ENOENT, EBUSY, EINVAL, ENODEV } },
	[INFO] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 80, { ENOENT, EINVAL, ENOTTY, ENODEV } },
	[MAP] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 100, { ENOENT, EINVAL, ENOTTY, ENODATA, ENODEV } },
	[DIRTY] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 60, { ENOENT, EINVAL, ENOTTY, ENOMEM, ENODEV } },
	[ADD] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 10,
		  { ENOENT, EINVAL, ENOTTY, ESRCH, EALREADY, EBUSY, ENODEV, ENOMEM } },
	[IMAGE] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 60, { ENOENT, EINVAL, ENOTTY, ENODEV } },
	[STAT] = { BLKFILTER_CTL, sizeof(struct blkfilter_ctl), 60, { ENOENT, EINVAL, ENOTTY, ENODEV } },
};

static void may(struct second *call, uintptr_t at, size_t size)
{
	call->may[call->count++] = (struct written){ at, size };
}

static struct blksnap_uuid some_id(struct rng *rng)
{
	struct blksnap_uuid id = shared->second_ids[below(rng, MAX_IDS)];

	if (one_in(rng, 24))
		id.b[below(rng, 16)] ^= 1 << below(rng, 8);
	return id;
}

/* A path, in memory of its own. None is of a device that has stamps. */
static uintptr_t some_path(struct worker *worker, struct second *call)
{
	static const char *const others[] = { "/nowhere", "/dev/null", "/dev", "/proc/self/mem", "", "/dev/shm/none/x" };
	struct rng *rng = &worker->rng;
	const char *path = one_in(rng, 2) ? "/dev/shm" : one_in(rng, 2) ? SECOND_FILE : storage_path;
	char *at;

	if (one_in(rng, 8))
		path = others[below(rng, sizeof(others) / sizeof(*others))];
	if (one_in(rng, 16)) {
		call->hostile = 1;
		return hostile_address(rng, &worker->array);
	}
	at = room_place(&worker->array, rng, strlen(path) + 1);
	strcpy(at, path);
	return (uintptr_t)at;
}

/* Ranges of a device, and how many of them are said to be there. */
static struct blksnap_sectors *some_ranges(struct worker *worker, struct second *call, const struct device *device,
					   __u32 *count)
{
	struct rng *rng = &worker->rng;
	unsigned int n = below(rng, 6);
	struct blksnap_sectors *ranges;

	ranges = (struct blksnap_sectors *)room_place(&worker->array, rng, n * sizeof(*ranges));
	for (unsigned int i = 0; i < n; i++) {
		struct blksnap_sectors range = { next(rng) % device->sectors, 0 };

		range.count = one_in(rng, 16) ? next(rng) : 1 + next(rng) % (device->sectors - range.offset);
		memcpy(&ranges[i], &range, sizeof(range));
	}
	*count = one_in(rng, 24) ? next(rng) : n;
	call->hostile |= *count != n;
	return ranges;
}

/* What was not used, of a snapshot of either interface. */
static void put_unused(struct worker *worker, struct second *call, const struct device *device)
{
	struct blksnap_unused *args = &call->args.unused;
	struct rng *rng = &worker->rng;

	args->id = some_id(rng);
	if (one_in(rng, 2)) {
		call->fd = worker->fds[below(rng, 4)];
		memcpy(&args->id, &shared->ids[below(rng, MAX_IDS)], sizeof(args->id));
	}
	args->dev_id_mj = device->id.mj;
	args->dev_id_mn = device->id.mn;
	args->flags = one_in(rng, 24) ? next(rng) : 0;
	args->ranges = (uintptr_t)some_ranges(worker, call, device, &args->count);
}

/* What a command to a filter has behind its number. */
static void put_payload(struct worker *worker, struct second *call, const struct device *device)
{
	struct rng *rng = &worker->rng;
	struct blkfilter_ctl *ctl = &call->args.ctl;
	union {
		struct blksnap_cbtinfo info;
		struct blksnap_cbtmap map;
		struct blksnap_cbtdirty dirty;
		struct blksnap_snapshotadd add;
		struct blksnap_snapshotinfo image;
		struct blksnap_stat stat;
	} payload;
	unsigned int size = 0, n;
	char *at;

	memset(&payload, FILL, sizeof(payload));
	switch (call->nr) {
	case INFO: size = sizeof(payload.info); break;
	case IMAGE: size = sizeof(payload.image); break;
	case STAT: size = one_in(rng, 2) ? sizeof(payload.stat) : 1 + below(rng, 100); break;
	case ADD: size = sizeof(payload.add); payload.add.id = some_id(rng); break;
	case MAP:
		size = sizeof(payload.map);
		n = below(rng, 128);
		payload.map.offset = one_in(rng, 2) ? 0 : below(rng, 80);
		payload.map.length = n;
		payload.map.buffer = (uintptr_t)room_place(&worker->array, rng, n);
		may(call, payload.map.buffer, n);
		break;
	default:
		size = sizeof(payload.dirty);
		payload.dirty.dirty_sectors =
			(uintptr_t)some_ranges(worker, call, device, &payload.dirty.count);
	}
	at = room_place(&worker->more, rng, size);
	memcpy(at, &payload, size < sizeof(payload) ? size : sizeof(payload));
	ctl->optlen = size;
	ctl->opt = (uintptr_t)at;
	if (one_in(rng, 16)) {
		ctl->opt = one_in(rng, 2) ? hostile_address(rng, &worker->more) : ctl->opt + worker->more.read_only;
		call->hostile = 1;
	}
	if (call->nr == INFO || call->nr == IMAGE || call->nr == STAT)
		may(call, ctl->opt, size);
	if (one_in(rng, 32))
		ctl->optlen = below(rng, size + 1);
	if (one_in(rng, 48)) {
		ctl->cmd = next(rng);
		call->hostile = 1;
	}
}

/* Puts a command of a device into the other wrapping. */
static void wrap(struct worker *worker, struct second *call, const struct device *device)
{
	struct blkfilter_ctl ctl = call->args.ctl;
	__u64 path = (uintptr_t)device->path;

	call->fd = worker->wrapped;
	memset(&call->args, 0, sizeof(call->args));
	memcpy(call->args.wrapped_ctl.name, ctl.name, sizeof(ctl.name));
	call->args.wrapped_ctl.path = path;
	if (call->nr == ATTACH) {
		call->word = WRAPPED(140, attach);
		call->size = sizeof(struct wrapped_attach);
	} else if (call->nr == DETACH) {
		call->word = WRAPPED(141, detach);
		call->size = sizeof(struct wrapped_detach);
	} else {
		call->word = WRAPPED(142, ctl);
		call->size = sizeof(struct wrapped_ctl);
		call->args.wrapped_ctl.cmd = ctl.cmd;
		call->args.wrapped_ctl.optlen = ctl.optlen;
		call->args.wrapped_ctl.opt = ctl.opt;
	}
}

static void make(struct worker *worker, struct second *call)
{
	static const unsigned int numbers[] = {
		[INFO] = blkfilter_ctl_blksnap_cbtinfo, [MAP] = blkfilter_ctl_blksnap_cbtmap,
		[DIRTY] = blkfilter_ctl_blksnap_cbtdirty, [ADD] = blkfilter_ctl_blksnap_snapshotadd,
		[IMAGE] = blkfilter_ctl_blksnap_snapshotinfo, [STAT] = blkfilter_ctl_blksnap_stat,
	};
	struct rng *rng = &worker->rng;
	const struct device *device = &devices[below(rng, device_count)];
	unsigned int weights = 0, n;

	for (unsigned int i = 0; i < SECOND; i++)
		weights += kinds[i].weight;
	weights = below(rng, weights);
	for (call->nr = 0; weights >= kinds[call->nr].weight; call->nr++)
		weights -= kinds[call->nr].weight;
	call->word = kinds[call->nr].word;
	call->size = kinds[call->nr].size;
	memset(&call->args, FILL, sizeof(call->args));
	call->fd = call->nr < ATTACH ? worker->second[below(rng, 2)] : device->fd;
	if (call->nr >= ATTACH) {
		memset(call->args.attach.name, 0, BLKFILTER_NAME_LENGTH);
		strcpy((char *)call->args.attach.name, one_in(rng, 32) ? "other" : BLKSNAP_FILTER_NAME);
	}
	switch (call->nr) {
	case CREATE:
		call->args.create.diff_storage_limit_sect = one_in(rng, 8) ? next(rng) : below(rng, 1 << 14);
		/* Only a few MiB, as there are as many in memory. */
		if (call->args.create.diff_storage_limit_sect >= 1 << 14)
			call->args.create.diff_storage_limit_sect = 1 << 14;
		call->args.create.diff_storage_filename = some_path(worker, call);
		break;
	case DESTROY: case TAKE: call->args.id = some_id(rng); break;
	case UNUSED: put_unused(worker, call, device); break;
	case WAIT:
		call->args.event.id = some_id(rng);
		call->args.event.timeout_ms = one_in(rng, 8) ? below(rng, 20) : 0;
		break;
	case COLLECT:
		n = below(rng, 6);
		call->args.collect.count = n;
		call->args.collect.ids = one_in(rng, 4) ? 0 :
			(uintptr_t)room_place(&worker->array, rng, n * sizeof(struct blksnap_uuid));
		may(call, call->args.collect.ids, n * sizeof(struct blksnap_uuid));
		break;
	default:
		if (call->nr >= INFO) {
			call->args.ctl.cmd = numbers[call->nr];
			put_payload(worker, call, device);
		}
	}
	if (call->nr >= ATTACH && worker->wrapped >= 0 && one_in(rng, 3))
		wrap(worker, call, device);
}

/* Some bits of the word, the address, or what is there, are others than they should be. */
static void spoil(struct worker *worker, struct second *call)
{
	struct rng *rng = &worker->rng;

	call->hostile = 1;
	switch (below(rng, 4)) {
	case 0:
		if (call->nr >= ATTACH)
			break;
		call->unknown = 1;
		call->word ^= 1u << (16 + below(rng, 14));
		for (unsigned int i = 0; i < SECOND; i++)
			if (call->word == kinds[i].word)
				call->unknown = 0;
		break;
	case 1:
		call->address = hostile_address(rng, &worker->args);
		call->cut = call->size != 0;
		break;
	case 2:
		call->address += worker->args.read_only;
		break;
	default:
		/* What says where the kernel writes to stays. */
		if (call->size && call->nr != COLLECT && call->nr != CREATE && call->nr < ATTACH)
			call->args.bytes[below(rng, call->size)] = next(rng);
	}
}

static int is_plausible(const struct second *call, int error)
{
	if (call->unknown)
		return error == ENOTTY;
	if (call->cut)
		return error == EFAULT;
	if (!error)
		return 1;
	if (error == EFAULT)
		return call->hostile || call->nr == TAKE;
	for (unsigned int i = 0; i < sizeof(kinds[0].errors); i++)
		if (kinds[call->nr].errors[i] == error)
			return 1;
	return 0;
}

static void keep_id(struct worker *worker, const char *placed)
{
	struct blksnap_snapshot_create made;

	memcpy(&made, placed, sizeof(made));
	want(made.id.b[6] >> 4 == 4 && made.id.b[8] >> 6 == 2);
	shared->second_ids[below(&worker->rng, MAX_IDS)] = made.id;
}

void fuzz_second(struct worker *worker)
{
	struct second call = { 0 };
	char *placed;
	int error, at;

	if (one_in(&worker->rng, 64)) {
		int *fd = &worker->second[1];

		close(*fd);
		*fd = open("/dev/" BLKSNAP_CTL, O_RDWR | O_CLOEXEC);
		want(*fd >= 0);
	}
	do
		make(worker, &call);
	while (shared->calm && kinds[call.nr].weight < 10 && !one_in(&worker->rng, 16));
	placed = room_place(&worker->args, &worker->rng, call.size);
	call.address = (uintptr_t)placed;
	if (one_in(&worker->rng, 4))
		spoil(worker, &call);
	memcpy(placed, &call.args, call.size);
	if (!call.unknown && !call.cut) {
		if (call.nr == VERSION)
			may(&call, call.address, call.size);
		if (call.nr == CREATE)
			may(&call, call.address + offsetof(struct blksnap_snapshot_create, id), 16);
		if (call.nr == COLLECT)
			may(&call, call.address, 4);
		if (call.nr == WAIT)
			may(&call, call.address + offsetof(struct blksnap_snapshot_event, code), 24);
	}
	room_remember(&worker->args);
	room_remember(&worker->array);
	room_remember(&worker->more);
	error = ioctl(call.fd, call.word, call.address) < 0 ? errno : 0;
	worker->made++;
	atomic_fetch_add_explicit(&shared->commands, 1, memory_order_relaxed);
	if (!call.unknown)
		atomic_fetch_add_explicit(&shared->second[call.nr][error < MAX_ERRNO ? error : 1], 1,
					  memory_order_relaxed);
	if (!is_plausible(&call, error))
		die("%s, command %llu: %s, %#x at %#lx: %s", worker->name, (unsigned long long)worker->made,
		    names[call.nr], call.word, (long)call.address, strerror(error));
	at = room_changed(&worker->args, call.may, call.count);
	if (at < 0)
		at = room_changed(&worker->array, call.may, call.count);
	if (at < 0)
		at = room_changed(&worker->more, call.may, call.count);
	if (at >= 0)
		die("%s, command %llu: %s, %#x: %s: the byte at %#x of its memory was written", worker->name,
		    (unsigned long long)worker->made, names[call.nr], call.word, strerror(error), at);
	if (!error && !call.unknown && call.nr == CREATE && call.address == (uintptr_t)placed)
		keep_id(worker, placed);
	room_clear(&worker->args);
	room_clear(&worker->array);
	room_clear(&worker->more);
}

/* Destroys all snapshots of this interface. Nobody else gives commands. */
void remove_second(int control)
{
	struct blksnap_snapshot_collect snapshots = { 0 };
	struct blksnap_uuid *ids;

	want(!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &snapshots));
	ids = calloc(snapshots.count + 1, sizeof(*ids));
	want(ids);
	snapshots.ids = (uintptr_t)ids;
	want(!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &snapshots));
	for (unsigned int i = 0; i < snapshots.count; i++)
		want(!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &ids[i]));
	want(!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, &snapshots) && !snapshots.count);
	free(ids);
}

void report_second(void)
{
	for (unsigned int i = 0; i < SECOND; i++) {
		unsigned long given = 0;

		printf("second: %-18s", names[i]);
		for (unsigned int error = 0; error < MAX_ERRNO; error++) {
			given += shared->second[i][error];
			if (shared->second[i][error])
				printf(" %s %lu", error ? strerrorname_np(error) : "done", shared->second[i][error]);
		}
		printf("\n");
		/* What was given often and has never worked was not tested; events are rare. */
		want(given < 100 || i == WAIT || shared->second[i][0]);
	}
}
