// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A small backup agent for blksnap: see blksnap.rst.
 *
 *	blksnap-example DEVICE STORAGE BACKUP
 *
 * copies the block device DEVICE, as it is at one instant, to the file BACKUP.
 * When it is run again with the same arguments, it copies what has changed
 * since.  BACKUP.state remembers up to where.  Meanwhile the files STORAGE.0,
 * STORAGE.1, ... take the old contents of blocks that are overwritten.  They
 * must lie on a file system that is neither on DEVICE nor on anything that is
 * built on it, and that keeps files in place on one block device (ext4, xfs).
 *
 * Build: cc -I<linux>/usr/include -pthread -o blksnap-example blksnap-example.c
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/blk_snap.h>
#include <linux/fiemap.h>
#include <linux/fs.h>

#define SECTOR		512ULL
#define PIECE		0x100000U	/* bytes copied at a time */
#define EXTENTS		256U		/* extents asked for at a time */

/* Extents with one of these cannot be written to below the file system. */
#define UNUSABLE	(FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | \
			 FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_NOT_ALIGNED | \
			 FIEMAP_EXTENT_SHARED)

static int control;			/* /dev/blksnap */
static struct blk_snap_uuid snapshot;
static const char *storage;		/* the beginning of the files' paths */
static unsigned int files;		/* how many of them there are */
static volatile sig_atomic_t stop;

/* What is remembered of the backup that BACKUP holds. */
struct state {
	struct blk_snap_uuid generation;
	__u8 snap_number;
};

static void on_signal(int number)
{
	stop = number;
}

static int complain(const char *what)
{
	fprintf(stderr, "blksnap-example: %s: %s\n", what, strerror(errno));
	return -1;
}

static struct blk_snap_dev_t dev_id(dev_t dev)
{
	struct blk_snap_dev_t id = { .mj = major(dev), .mn = minor(dev) };

	return id;
}

/* Gives the snapshot the blocks of a file, wherever they are. */
static int append_extents(int fd, struct blk_snap_dev_t device)
{
	struct blk_snap_block_range ranges[EXTENTS];
	struct blk_snap_snapshot_append_storage append = {
		.id = snapshot,
		.dev_id = device,
		.ranges = ranges,
	};
	struct fiemap *map;
	__u64 next = 0;
	bool last = false;
	int ret = -1;

	map = malloc(sizeof(*map) + EXTENTS * sizeof(map->fm_extents[0]));
	if (!map)
		return complain("malloc");
	while (!last) {
		memset(map, 0, sizeof(*map));
		map->fm_start = next;
		map->fm_length = FIEMAP_MAX_OFFSET - next;
		map->fm_flags = FIEMAP_FLAG_SYNC;
		map->fm_extent_count = EXTENTS;
		if (ioctl(fd, FS_IOC_FIEMAP, map)) {
			complain("FIEMAP");
			goto out;
		}
		append.count = 0;
		for (unsigned int i = 0; i < map->fm_mapped_extents; i++) {
			const struct fiemap_extent *e = &map->fm_extents[i];
			/* Whole sectors only. */
			__u64 from = (e->fe_physical + SECTOR - 1) / SECTOR;
			__u64 to = (e->fe_physical + e->fe_length) / SECTOR;

			if (e->fe_flags & UNUSABLE) {
				errno = EOPNOTSUPP;
				complain("storage file");
				goto out;
			}
			if (from < to) {
				ranges[append.count].sector_offset = from;
				ranges[append.count].sector_count = to - from;
				append.count++;
			}
			next = e->fe_logical + e->fe_length;
			last = e->fe_flags & FIEMAP_EXTENT_LAST;
		}
		if (!map->fm_mapped_extents)
			last = true;
		if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_APPEND_STORAGE, &append)) {
			/* ESRCH: the backup is done, and needs no more. */
			if (errno != ESRCH)
				complain("APPEND_STORAGE");
			goto out;
		}
	}
	ret = 0;
out:
	free(map);
	return ret;
}

/* Makes a file with so many sectors allocated, and gives them to the snapshot. */
static int add_storage(__u64 sectors)
{
	char path[PATH_MAX];
	struct stat st;
	int fd, ret = -1;

	snprintf(path, sizeof(path), "%s.%u", storage, files);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return complain(path);
	files++;
	if (fallocate(fd, 0, 0, sectors * SECTOR) || fsync(fd) || fstat(fd, &st))
		complain(path);
	else
		ret = append_extents(fd, dev_id(st.st_dev));
	close(fd);
	return ret;
}

/*
 * Waits for one event and does what it asks for.  Returns 1 if there was one, 0
 * if the time was over, and -1 if no more are to be expected.
 */
static int serve_event(unsigned int timeout_ms)
{
	struct blk_snap_snapshot_event event = {
		.id = snapshot,
		.timeout_ms = timeout_ms,
	};
	struct blk_snap_event_low_free_space low;
	struct blk_snap_event_corrupted bad;

	if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_WAIT_EVENT, &event)) {
		if (errno == ENOENT || errno == EINTR)
			return 0;
		/* ESRCH: it was destroyed. */
		return errno == ESRCH ? -1 : complain("WAIT_EVENT");
	}
	switch (event.code) {
	case blk_snap_event_code_low_free_space:
		memcpy(&low, event.data, sizeof(low));
		/* If this fails, the snapshot goes on with what it has. */
		add_storage(low.requested_nr_sect);
		break;
	case blk_snap_event_code_corrupted:
		memcpy(&bad, event.data, sizeof(bad));
		errno = bad.err_code;
		fprintf(stderr, "blksnap-example: the image of %u:%u is lost: %s\n",
			bad.orig_dev_id.mj, bad.orig_dev_id.mn, strerror(errno));
		break;
	}
	return 1;
}

static void *serve_events(void *unused)
{
	while (serve_event(1000) >= 0)
		;
	return unused;
}

/* Finds what is known of a tracked device. */
static int find_tracker(struct blk_snap_dev_t device, struct blk_snap_cbt_info *found)
{
	struct blk_snap_tracker_collect collect = { .count = 0 };
	struct blk_snap_cbt_info *infos = NULL;
	int ret;

	/* Without an array: how many are there?  There may be more by then. */
	ret = ioctl(control, IOCTL_BLK_SNAP_TRACKER_COLLECT, &collect);
	if (ret)
		return complain("TRACKER_COLLECT");
	do {
		free(infos);
		infos = calloc(collect.count, sizeof(*infos));
		if (!infos)
			return complain("calloc");
		collect.cbt_info_array = infos;
		ret = ioctl(control, IOCTL_BLK_SNAP_TRACKER_COLLECT, &collect);
	} while (ret && errno == ENOBUFS);

	for (__u32 i = 0; !ret && i < collect.count; i++) {
		if (infos[i].dev_id.mj == device.mj &&
		    infos[i].dev_id.mn == device.mn) {
			*found = infos[i];
			free(infos);
			return 0;
		}
	}
	if (!ret)
		errno = ENODATA;
	complain("TRACKER_COLLECT");
	free(infos);
	return -1;
}

/* Reads the change map of the last take, one byte a block. */
static __u8 *read_map(const struct blk_snap_cbt_info *info)
{
	struct blk_snap_tracker_read_cbt_bitmap read = { .dev_id = info->dev_id };
	__u8 *map = malloc(info->blk_count);
	int got = 1;

	while (map && read.offset < info->blk_count && got > 0) {
		read.length = info->blk_count - read.offset;
		if (read.length > PIECE)
			read.length = PIECE;
		read.buff = map + read.offset;
		got = ioctl(control, IOCTL_BLK_SNAP_TRACKER_READ_CBT_MAP, &read);
		if (got > 0)
			read.offset += got;
	}
	if (map && read.offset == info->blk_count)
		return map;
	complain("READ_CBT_MAP");
	free(map);
	return NULL;
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
static int copy_blocks(int from, int to, const struct blk_snap_cbt_info *info,
		       const __u8 *map, int since)
{
	__u64 copied = 0;

	for (__u64 block = 0; block < info->blk_count; block++) {
		__u64 at = block * info->blk_size;
		__u64 end = at + info->blk_size;

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
static int back_up(const struct blk_snap_image_info *image, const char *backup)
{
	char image_path[64], state_path[PATH_MAX];
	struct blk_snap_cbt_info info;
	struct state old, new = { .snap_number = 0 };
	int from, to, state, since = -1, ret = -1;
	__u8 *map;

	snprintf(image_path, sizeof(image_path), "/dev/" BLK_SNAP_IMAGE_NAME "%u",
		 image->image_dev_id.mn);
	snprintf(state_path, sizeof(state_path), "%s.state", backup);
	if (find_tracker(image->orig_dev_id, &info))
		return -1;
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
		since = old.snap_number;
	/* From here on the backup is neither the old nor the new one. */
	if (ftruncate(state, 0) || fsync(state) ||
	    ftruncate(to, info.device_capacity)) {
		complain("begin the backup");
		goto out;
	}
	if (copy_blocks(from, to, &info, map, since))
		goto out;
	new.generation = info.generation_id;
	new.snap_number = info.snap_number;
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

/* From the first portion of storage to the end of the backup. */
static int run(const char *backup)
{
	struct blk_snap_snapshot_take take = { .id = snapshot };
	struct blk_snap_snapshot_destroy destroy = { .id = snapshot };
	struct blk_snap_image_info image;
	struct blk_snap_snapshot_collect_images images = {
		.id = snapshot,
		.count = 1,
		.image_info_array = &image,
	};
	pthread_t server;
	bool serving = false;
	int ret = -1;

	/* The first event is there since the snapshot was created. */
	if (serve_event(100) != 1) {
		fprintf(stderr, "blksnap-example: no event\n");
	} else if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_TAKE, &take)) {
		complain("TAKE");
	} else if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_COLLECT_IMAGES, &images)) {
		complain("COLLECT_IMAGES");
	} else {
		errno = pthread_create(&server, NULL, serve_events, NULL);
		serving = !errno;
		ret = serving ? back_up(&image, backup) : complain("thread");
	}

	/* Wakes up the thread.  The files may go when this has succeeded. */
	if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_DESTROY, &destroy))
		return complain("DESTROY");
	if (serving)
		pthread_join(server, NULL);
	while (files) {
		char path[PATH_MAX];

		snprintf(path, sizeof(path), "%s.%u", storage, --files);
		unlink(path);
	}
	return ret;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct blk_snap_version version;
	struct blk_snap_dev_t device;
	struct blk_snap_snapshot_create create = {
		.count = 1,
		.dev_id_array = &device,
	};
	struct stat st;

	if (argc != 4) {
		fprintf(stderr, "usage: blksnap-example DEVICE STORAGE BACKUP\n");
		return 2;
	}
	if (stat(argv[1], &st) || !S_ISBLK(st.st_mode)) {
		fprintf(stderr, "blksnap-example: %s is not a block device\n", argv[1]);
		return 1;
	}
	device = dev_id(st.st_rdev);
	storage = argv[2];

	/* A snapshot outlives its program: do not leave one behind. */
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	control = open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR | O_CLOEXEC);
	if (control < 0 || ioctl(control, IOCTL_BLK_SNAP_VERSION, &version))
		return complain("/dev/" BLK_SNAP_MODULE_NAME) ? 1 : 0;
	if (version.major != 1) {
		fprintf(stderr, "blksnap-example: version %u is not known\n", version.major);
		return 1;
	}
	if (ioctl(control, IOCTL_BLK_SNAP_SNAPSHOT_CREATE, &create))
		return complain("CREATE") ? 1 : 0;
	snapshot = create.id;
	return run(argv[3]) ? 1 : 0;
}
