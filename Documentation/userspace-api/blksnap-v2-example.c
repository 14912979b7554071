// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A small backup agent for blksnap, by its interface of 2025: see blksnap-v2.rst.
 *
 *	blksnap-v2-example DEVICE STORAGE LIMIT BACKUP
 *
 * copies the block device DEVICE, as it is at one instant, to the file BACKUP.
 * When it is run again with the same arguments, it copies what has changed
 * since.  BACKUP.state remembers up to where.  Meanwhile STORAGE, a directory, a
 * file or a block device, takes the old contents of blocks that are overwritten:
 * at most LIMIT MiB of them, unless it is a device.
 *
 * Build: cc -I<linux>/usr/include -o blksnap-v2-example blksnap-v2-example.c
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/blk-filter.h>
#include <linux/blksnap.h>

#define SECTORS_PER_MIB	2048ULL
#define PIECE		0x100000U	/* bytes copied at a time */

static int control;			/* /dev/blksnap-control */
static int device;			/* what is backed up */
static struct blksnap_uuid snapshot;
static volatile sig_atomic_t stop;

/* What is remembered of the backup that BACKUP holds. */
struct state {
	struct blksnap_uuid generation;
	__u8 changes_number;
};

static void on_signal(int number)
{
	stop = number;
}

static int complain(const char *what)
{
	fprintf(stderr, "blksnap-v2-example: %s: %s\n", what, strerror(errno));
	return -1;
}

/* Begins to track the device; it is fine if that is done already. */
static int attach(void)
{
	struct blkfilter_attach args = { .name = BLKSNAP_FILTER_NAME };

	if (ioctl(device, BLKFILTER_ATTACH, &args) && errno != EALREADY)
		return complain("ATTACH");
	return 0;
}

/* Gives a command to the filter of the device. */
static int command(enum blkfilter_ctl_blksnap cmd, void *opt, size_t size)
{
	struct blkfilter_ctl args = {
		.name = BLKSNAP_FILTER_NAME,
		.cmd = cmd,
		.optlen = size,
		.opt = (uintptr_t)opt,
	};

	return ioctl(device, BLKFILTER_CTL, &args);
}

/* Prepares a snapshot whose storage is there, and may become so large. */
static int create(const char *storage, __u64 limit_mib)
{
	struct blksnap_snapshot_create args = {
		.diff_storage_limit_sect = limit_mib * SECTORS_PER_MIB,
		.diff_storage_filename = (uintptr_t)storage,
	};

	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_CREATE, &args))
		return complain(storage);
	snapshot = args.id;
	return 0;
}

static int add_device(void)
{
	struct blksnap_snapshotadd args = { .id = snapshot };
	int ret = command(blkfilter_ctl_blksnap_snapshotadd, &args, sizeof(args));

	/* Not tracked yet: this backup will be a full one. */
	if (ret && errno == ENOENT) {
		if (attach())
			return -1;
		ret = command(blkfilter_ctl_blksnap_snapshotadd, &args, sizeof(args));
	}
	return ret ? complain("SNAPSHOTADD") : 0;
}

/* Tells what has happened to the snapshot; fails if the image was lost. */
static int look_at_events(void)
{
	struct blksnap_snapshot_event event = { .id = snapshot, .timeout_ms = 0 };
	struct blksnap_event_corrupted bad;
	struct blksnap_event_no_space full;
	int ret = 0;

	while (!ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT, &event)) {
		switch (event.code) {
		case blksnap_event_code_corrupted:
			memcpy(&bad, event.data, sizeof(bad));
			errno = bad.err_code;
			ret = complain("the image is lost");
			break;
		case blksnap_event_code_no_space:
			memcpy(&full, event.data, sizeof(full));
			fprintf(stderr, "blksnap-v2-example: the storage has reached %llu MiB\n",
				full.requested_nr_sect / SECTORS_PER_MIB);
			break;
		}
	}
	/* ENOENT: there are no more. */
	return errno == ENOENT ? ret : complain("WAIT_EVENT");
}

/* Reads the change map of the last take, one byte a block. */
static __u8 *read_map(const struct blksnap_cbtinfo *info)
{
	__u8 *map = malloc(info->block_count);
	struct blksnap_cbtmap part = { .offset = 0 };

	while (map && part.offset < info->block_count) {
		part.length = info->block_count - part.offset;
		if (part.length > PIECE)
			part.length = PIECE;
		part.buffer = (uintptr_t)(map + part.offset);
		if (command(blkfilter_ctl_blksnap_cbtmap, &part, sizeof(part))) {
			free(map);
			map = NULL;
		}
		part.offset += part.length;
	}
	if (!map)
		complain("CBTMAP");
	return map;
}

static int copy_range(int from, int to, __u64 at, __u64 end)
{
	static char buffer[PIECE];

	while (at < end) {
		size_t want = end - at < PIECE ? end - at : PIECE;
		ssize_t got = pread(from, buffer, want, at);

		if (stop)
			errno = EINTR;
		if (stop || got <= 0)
			return complain("read the image");
		for (ssize_t put, done = 0; done < got; done += put) {
			put = pwrite(to, buffer + done, got - done, at + done);
			if (put < 0)
				return complain("write the backup");
		}
		at += got;
	}
	return 0;
}

/* Copies the blocks with a number greater than @since; -1 stands for all. */
static int copy_blocks(int from, int to, const struct blksnap_cbtinfo *info,
		       const __u8 *map, int since)
{
	__u64 copied = 0;

	for (__u64 block = 0; block < info->block_count; block++) {
		__u64 at = block * info->block_size;
		__u64 end = at + info->block_size;

		if (map[block] <= since)
			continue;
		if (end > info->device_capacity)
			end = info->device_capacity;
		if (copy_range(from, to, at, end))
			return -1;
		copied += end - at;
	}
	printf("%s: %" PRIu64 " of %" PRIu64 " bytes copied\n",
	       since < 0 ? "full" : "incremental", (uint64_t)copied,
	       (uint64_t)info->device_capacity);
	return 0;
}

/* Brings the backup up to date with a snapshot that was taken. */
static int back_up(const char *backup)
{
	char image_path[64], state_path[PATH_MAX];
	struct state old, new = { .changes_number = 0 };
	struct blksnap_snapshotinfo image;
	struct blksnap_cbtinfo info;
	int from, to, state, since = -1, ret = -1;
	__u8 *map;

	if (command(blkfilter_ctl_blksnap_snapshotinfo, &image, sizeof(image)))
		return complain("SNAPSHOTINFO");
	if (command(blkfilter_ctl_blksnap_cbtinfo, &info, sizeof(info)))
		return complain("CBTINFO");
	snprintf(image_path, sizeof(image_path), "/dev/%.*s", IMAGE_DISK_NAME_LEN,
		 (const char *)image.image);
	snprintf(state_path, sizeof(state_path), "%s.state", backup);
	map = read_map(&info);
	from = open(image_path, O_RDONLY | O_CLOEXEC);
	to = open(backup, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	state = open(state_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (!map || from < 0 || to < 0 || state < 0) {
		complain("open");
		goto out;
	}

	/* Numbers tell something only within one generation. */
	if (read(state, &old, sizeof(old)) == sizeof(old) &&
	    !memcmp(&old.generation, &info.generation_id, sizeof(old.generation)))
		since = old.changes_number;
	/* From here on the backup is neither the old nor the new one. */
	if (ftruncate(state, 0) || fsync(state) ||
	    ftruncate(to, info.device_capacity)) {
		complain("begin the backup");
		goto out;
	}
	if (copy_blocks(from, to, &info, map, since) | look_at_events())
		goto out;
	new.generation = info.generation_id;
	new.changes_number = info.changes_number;
	if (fsync(to) || pwrite(state, &new, sizeof(new), 0) != sizeof(new) ||
	    fsync(state))
		complain("end the backup");
	else
		ret = 0;
out:
	if (state >= 0)
		close(state);
	if (to >= 0)
		close(to);
	if (from >= 0)
		close(from);
	free(map);
	return ret;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct blksnap_version version;
	int ret = -1;

	if (argc != 5) {
		fprintf(stderr, "usage: blksnap-v2-example DEVICE STORAGE LIMIT BACKUP\n");
		return 2;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	control = open("/dev/" BLKSNAP_CTL, O_RDWR | O_CLOEXEC);
	if (control < 0 || ioctl(control, IOCTL_BLKSNAP_VERSION, &version))
		return complain("/dev/" BLKSNAP_CTL) ? 1 : 0;
	if (version.major != 2) {
		fprintf(stderr, "blksnap-v2-example: version %u is not known\n", version.major);
		return 1;
	}
	/* The device stays mounted, and others may write to it. */
	device = open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (device < 0)
		return complain(argv[1]) ? 1 : 0;
	/* If this program is killed, its snapshot ends.  Other modules cannot do that. */
	if (ioctl(control, IOCTL_BLKSNAP_BIND) && errno != ENOTTY)
		complain("BIND");

	if (create(argv[2], strtoull(argv[3], NULL, 10)))
		return 1;
	if (!add_device()) {
		if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_TAKE, &snapshot))
			complain("TAKE");
		else
			ret = back_up(argv[4]);
	}
	if (ioctl(control, IOCTL_BLKSNAP_SNAPSHOT_DESTROY, &snapshot))
		return complain("DESTROY") ? 1 : 0;
	return ret ? 1 : 0;
}
