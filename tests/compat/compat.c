// SPDX-License-Identifier: GPL-2.0
/*
 * All commands of the control device as a 32-bit program gives them: built with
 * `gcc -m32` against the uapi header and run by tests/vm.d/15-compat.
 *
 *   compat CASE ONE TWO STORAGE
 *
 * ONE and TWO are devices of 4 MiB, STORAGE is a larger one; events ask for
 * PORTION sectors. Exits with 0 if all is well, otherwise it says what is not.
 */
#include <linux/blk_snap.h>
#include "compat.h"

#define PORTION 4096u

#define works(name, arg) command(__LINE__, #name, IOCTL_BLK_SNAP_##name, arg, 0)
#define fails(number, name, arg) command(__LINE__, #name, IOCTL_BLK_SNAP_##name, arg, number)
/* A structure of that type behind which there is no memory. */
#define new(type) ((struct blk_snap_##type *)room(sizeof(struct blk_snap_##type)))

static int fd;
static struct blk_snap_dev_t one, two, storage;
static const char *one_path;

/* Gives the command; it must fail with `number`, or return what is not negative if that is 0. */
static int command(int line, const char *name, unsigned int number, void *arg, int wanted)
{
	int result = ioctl(fd, number, arg);
	int found = result < 0 ? errno : 0;

	if (found != wanted)
		die("line %d: %s: found %d (%s), wanted %d (%s)", line, name, found,
		    strerror(found), wanted, strerror(wanted));
	return result;
}

static struct blk_snap_dev_t number_of(const char *path)
{
	struct stat status;

	if (stat(path, &status))
		die("%s: %s", path, strerror(errno));
	return (struct blk_snap_dev_t){ major(status.st_rdev), minor(status.st_rdev) };
}

static int is(struct blk_snap_dev_t a, struct blk_snap_dev_t b)
{
	return a.mj == b.mj && a.mn == b.mn;
}

static struct blk_snap_uuid create(int count)
{
	struct blk_snap_snapshot_create *args = new(snapshot_create);
	struct blk_snap_dev_t *ids = room(count * sizeof(*ids));

	ids[0] = two;
	if (count > 1)
		ids[1] = one;
	args->count = count;
	args->dev_id_array = ids;
	works(SNAPSHOT_CREATE, args);
	want(args->count == (unsigned int)count && args->dev_id_array == ids && alone(args));
	want(args->id.b[6] >> 4 == 4 && args->id.b[8] >> 6 == 2);
	return args->id;
}

static struct blk_snap_snapshot_append_storage *
storage_args(struct blk_snap_uuid id, unsigned int count, __u64 first, __u64 sectors)
{
	struct blk_snap_snapshot_append_storage *args = new(snapshot_append_storage);
	struct blk_snap_block_range *ranges = room(count * sizeof(*ranges));

	for (unsigned int i = 0; i < count; i++) {
		ranges[i].sector_offset = first + i * (sectors + 8);
		ranges[i].sector_count = sectors;
	}
	args->id = id;
	args->dev_id = storage;
	args->count = count;
	args->ranges = ranges;
	return args;
}

static struct blk_snap_snapshot_take *named(struct blk_snap_uuid id)
{
	struct blk_snap_snapshot_take *args = new(snapshot_take);

	args->id = id;
	return args;
}

static struct blk_snap_uuid taken(unsigned int sectors)
{
	struct blk_snap_uuid id = create(2);

	works(SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, 0, sectors));
	works(SNAPSHOT_TAKE, named(id));
	return id;
}

static void remove_tracker(struct blk_snap_dev_t device, int number)
{
	struct blk_snap_tracker_remove *args = new(tracker_remove);

	args->dev_id = device;
	command(__LINE__, "TRACKER_REMOVE", IOCTL_BLK_SNAP_TRACKER_REMOVE, args, number);
}

static void end(struct blk_snap_uuid id)
{
	works(SNAPSHOT_DESTROY, named(id));
	fails(ENODEV, SNAPSHOT_DESTROY, named(id));
}

static void version(void)
{
	struct blk_snap_version *args = new(version);

	works(VERSION, args);
	want(args->major == 1 && args->minor != 0xa5a5 && args->build != 0xa5a5 && alone(args));
}

static void trackers(void)
{
	struct blk_snap_tracker_collect *args = new(tracker_collect);
	struct blk_snap_cbt_info *infos = room(5 * sizeof(*infos));

	args->cbt_info_array = NULL;
	works(TRACKER_COLLECT, args);
	want(args->count == 0);
	remove_tracker(one, ENODATA);
	end(taken(8192));

	args->cbt_info_array = NULL;
	works(TRACKER_COLLECT, args);
	want(args->count == 2);
	for (unsigned int i = 0; i < 2; i++) {
		args->count = i;
		args->cbt_info_array = infos;
		fails(ENOBUFS, TRACKER_COLLECT, args);
		want(args->count == 2 && filled(infos, infos + 5) && alone(infos));
	}
	/* With room to spare, and with none behind it. */
	for (int spare = 3; spare >= 0; spare -= 3) {
		struct blk_snap_cbt_info *at = infos + 3 - spare;

		args->count = 2 + spare;
		args->cbt_info_array = at;
		works(TRACKER_COLLECT, args);
		want(args->count == 2 && args->cbt_info_array == at && alone(args));
		want(is(at[0].dev_id, two) && is(at[1].dev_id, one));
		for (int i = 0; i < 2; i++) {
			const char *padding = (char *)&at[i].snap_number + 1;

			want(at[i].blk_size == BLOCK && at[i].blk_count == BLOCKS);
			want(at[i].device_capacity == SIZE && at[i].snap_number == 1);
			want(at[i].generation_id.b[6] >> 4 == 4);
			want(!memcmp(padding, "\0\0\0", 3) || filled(padding, padding + 3));
		}
		want(memcmp(&at[0].generation_id, &at[1].generation_id, 16));
		want(filled(infos, at) && filled(at + 2, infos + 5) && alone(infos));
		memset(infos, FILL, 5 * sizeof(*infos));
	}
	remove_tracker(one, 0);
	remove_tracker(two, 0);
	remove_tracker(one, ENODATA);
}

static void snapshots(void)
{
	struct blk_snap_snapshot_collect *args = new(snapshot_collect);
	struct blk_snap_uuid *ids = room(3 * sizeof(*ids));
	struct blk_snap_uuid id, nobody = { { 1 } };

	args->ids = NULL;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 0);
	id = create(1);
	args->ids = NULL;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 1);
	args->count = 0;
	args->ids = ids;
	fails(ENODATA, SNAPSHOT_COLLECT, args);
	want(args->count == 1 && filled(ids, ids + 3));
	args->count = 3;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 1 && args->ids == ids && alone(args) && alone(ids));
	want(!memcmp(ids, &id, 16) && filled(ids + 1, ids + 3));
	args->count = 1;
	args->ids = ids + 2;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 1 && !memcmp(ids + 2, &id, 16));

	remove_tracker(two, EBUSY);
	fails(EFAULT, SNAPSHOT_TAKE, named(id)); /* no storage */
	fails(ESRCH, SNAPSHOT_TAKE, named(nobody));
	fails(ENODEV, SNAPSHOT_DESTROY, named(nobody));
	end(id);
	remove_tracker(two, 0);
}

static void append(void)
{
	struct blk_snap_uuid id = create(2), nobody = { { 1 } };
	struct blk_snap_snapshot_append_storage *args = storage_args(id, 300, 0, 16), before;

	before = *args;
	works(SNAPSHOT_APPEND_STORAGE, args);
	want(!memcmp(args, &before, sizeof(before)) && alone(args));
	fails(EINVAL, SNAPSHOT_APPEND_STORAGE, args); /* overlaps */
	works(SNAPSHOT_APPEND_STORAGE, storage_args(id, 0, 0, 0));
	fails(EINVAL, SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, 1ull << 40, 8));
	fails(EINVAL, SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, ~0ull, 2));
	fails(EINVAL, SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, 8192, 0));
	fails(ESRCH, SNAPSHOT_APPEND_STORAGE, storage_args(nobody, 1, 8192, 8));
	works(SNAPSHOT_TAKE, named(id));
	fails(EALREADY, SNAPSHOT_TAKE, named(id));
	works(SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, 16384, 64));
}

/* What was not used: the structure is that of 64-bit programs. */
static void unused(struct blk_snap_uuid id)
{
	struct blk_snap_unused *args = new(unused);
	struct blk_snap_block_range *ranges = room(2 * sizeof(*ranges));

	for (unsigned int i = 0; i < 2; i++)
		ranges[i] = (struct blk_snap_block_range){ 16 * i, 8 };
	args->id = id;
	args->dev_id = two;
	args->flags = 0;
	args->count = 2;
	args->ranges = (unsigned long)ranges;
	works(UNUSED, args);
	args->flags = 1;
	fails(EINVAL, UNUSED, args);
	args->flags = 0;
	args->ranges |= 1ull << 32;
	fails(EFAULT, UNUSED, args);
	args->dev_id = storage;
	args->count = 0;
	fails(ENOENT, UNUSED, args);
	want(alone(args) && alone(ranges));
}

static void images(void)
{
	struct blk_snap_uuid id = create(2), nobody = { { 1 } };
	struct blk_snap_snapshot_collect_images *args = new(snapshot_collect_images);
	struct blk_snap_image_info *infos = room(2 * sizeof(*infos));
	struct blk_snap_dev_t orig[] = { two, one };

	args->id = id;
	args->image_info_array = infos;
	args->count = 2;
	fails(ENODEV, SNAPSHOT_COLLECT_IMAGES, args);
	works(SNAPSHOT_APPEND_STORAGE, storage_args(id, 1, 0, 8192));
	works(SNAPSHOT_TAKE, named(id));
	args->image_info_array = NULL;
	args->count = 77;
	works(SNAPSHOT_COLLECT_IMAGES, args);
	want(args->count == 2);
	for (unsigned int i = 0; i < 2; i++) {
		args->count = i;
		args->image_info_array = infos;
		fails(ENODATA, SNAPSHOT_COLLECT_IMAGES, args);
		want(args->count == 2 && filled(infos, infos + 2));
	}
	works(SNAPSHOT_COLLECT_IMAGES, args);
	want(args->count == 2 && args->image_info_array == infos && alone(args) && alone(infos));
	want(!memcmp(&args->id, &id, 16));
	for (unsigned int i = 0; i < 2; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/dev/" BLK_SNAP_IMAGE_NAME "%u",
			 infos[i].image_dev_id.mn);
		want(is(infos[i].orig_dev_id, orig[i]));
		want(is(infos[i].image_dev_id, number_of(path)));
	}
	unused(id);
	args->id = nobody;
	fails(ESRCH, SNAPSHOT_COLLECT_IMAGES, args);
}

static void map(void)
{
	struct blk_snap_tracker_mark_dirty_blocks *marks = new(tracker_mark_dirty_blocks);
	struct blk_snap_tracker_read_cbt_bitmap *args = new(tracker_read_cbt_bitmap);
	struct blk_snap_block_range *ranges = room(2 * sizeof(*ranges));
	unsigned char *bytes = room(BLOCKS), wanted[BLOCKS] = { 0 };
	struct blk_snap_uuid id = taken(8192);

	marks->dev_id = one;
	marks->count = 2;
	marks->dirty_blocks_array = ranges;
	ranges[0].sector_offset = 3 * BLOCK / 512 + 1;
	ranges[0].sector_count = BLOCK / 512;
	ranges[1].sector_offset = SIZE / 512 - 1;
	ranges[1].sector_count = 1;
	works(TRACKER_MARK_DIRTY_BLOCKS, marks);
	want(marks->count == 2 && marks->dirty_blocks_array == ranges && alone(marks));
	wanted[3] = wanted[4] = wanted[BLOCKS - 1] = 1;

	args->dev_id = one;
	args->offset = 0;
	args->length = BLOCKS;
	args->buff = bytes;
	want(works(TRACKER_READ_CBT_MAP, args) == BLOCKS);
	want(!memcmp(bytes, wanted, BLOCKS) && alone(bytes) && alone(args));
	/* Only what there is. */
	memset(bytes, FILL, BLOCKS);
	args->offset = BLOCKS - 3;
	args->length = BLOCKS;
	want(works(TRACKER_READ_CBT_MAP, args) == 3);
	want(!memcmp(bytes, wanted + BLOCKS - 3, 3) && filled(bytes + 3, bytes + BLOCKS));
	args->offset = ~0u;
	want(works(TRACKER_READ_CBT_MAP, args) == 0);

	ranges[1].sector_count = 2; /* past the end: the first one is not marked either */
	ranges[0].sector_offset = 0;
	fails(EINVAL, TRACKER_MARK_DIRTY_BLOCKS, marks);
	marks->dev_id = storage;
	fails(ENODEV, TRACKER_MARK_DIRTY_BLOCKS, marks);
	args->offset = 0;
	want(works(TRACKER_READ_CBT_MAP, args) == BLOCKS && !memcmp(bytes, wanted, BLOCKS));
	args->dev_id = storage;
	fails(ENODATA, TRACKER_READ_CBT_MAP, args);
	end(id);
	args->dev_id = one;
	fails(EPERM, TRACKER_READ_CBT_MAP, args);
}

static struct blk_snap_snapshot_event *waiting(struct blk_snap_uuid id, unsigned int timeout_ms)
{
	struct blk_snap_snapshot_event *args = new(snapshot_event);

	args->id = id;
	args->timeout_ms = timeout_ms;
	return args;
}

static void events(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval every_second = { { 1, 0 }, { 1, 0 } }, never = { 0 };
	struct blk_snap_uuid id = create(2), nobody = { { 1 } };
	struct blk_snap_snapshot_event *args = waiting(id, 1000);
	struct blk_snap_event_low_free_space data;

	works(SNAPSHOT_WAIT_EVENT, args);
	want(args->code == blk_snap_event_code_low_free_space && args->timeout_ms == 1000);
	want(!memcmp(&args->id, &id, 16));
	memcpy(&data, args->data, sizeof(data));
	want(data.requested_nr_sect == PORTION);
	for (unsigned int i = sizeof(data); i < sizeof(args->data); i++)
		want(args->data[i] == 0 || args->data[i] == FILL);
	fails(ENOENT, SNAPSHOT_WAIT_EVENT, waiting(id, 0));
	fails(ENOENT, SNAPSHOT_WAIT_EVENT, waiting(id, 20));
	fails(ESRCH, SNAPSHOT_WAIT_EVENT, waiting(nobody, 1000));
	/* Again and again: the first one may come before the command has begun. */
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every_second, NULL);
	fails(EINTR, SNAPSHOT_WAIT_EVENT, waiting(id, ~0u));
	setitimer(ITIMER_REAL, &never, NULL);
}

static void corrupted(void)
{
	struct blk_snap_uuid id = taken(64);
	struct blk_snap_event_corrupted data;
	struct blk_snap_snapshot_event *args;
	char *buffer = room(1 << 20);
	int seen_one = 0, device = open(one_path, O_WRONLY);

	want(pwrite(device, buffer, 1 << 20, 0) == 1 << 20 && !fsync(device));
	for (int left = 2; left;) {
		args = waiting(id, 60000);
		works(SNAPSHOT_WAIT_EVENT, args);
		if (args->code == blk_snap_event_code_low_free_space)
			continue;
		want(args->code == blk_snap_event_code_corrupted);
		memcpy(&data, args->data, sizeof(data));
		want(data.err_code == ENOSPC);
		want(is(data.orig_dev_id, one) || is(data.orig_dev_id, two));
		seen_one += is(data.orig_dev_id, one);
		left--;
	}
	want(seen_one == 1);
}

/* The numbers, and the directions and sizes of other systems. */
static const struct {
	unsigned int ours, lp64;
} numbers[] = {
	{ 0x40085600, 0x40085600 }, { 0x40085601, 0x40085601 }, { 0x40085602, 0x40105602 },
	{ 0x80145603, 0x80185603 }, { 0x80105604, 0x80185604 }, { 0x40185605, 0x40205605 },
	{ 0x80105606, 0x80105606 }, { 0x40205607, 0x40285607 }, { 0x80105608, 0x80105608 },
	{ 0x40085609, 0x40105609 }, { 0x4018560a, 0x4020560a }, { 0x5000560b, 0x5000560b },
};
#define NUMBERS (sizeof(numbers) / sizeof(*numbers))

static int is_a_number(unsigned int word)
{
	for (unsigned int i = 0; i < NUMBERS; i++)
		if (numbers[i].ours == word)
			return 1;
	return 0;
}

static void refused(unsigned int word, void *arg)
{
	if (!is_a_number(word) && (ioctl(fd, word, arg) != -1 || errno != ENOTTY))
		die("%#x: not refused with ENOTTY: %s", word, strerror(errno));
}

static void wrong(void)
{
	struct blk_snap_uuid id = taken(8192);
	char *arg = calloc(2, PAGE);
	unsigned int i, sizes[] = { 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 4095, 4097 };

	for (int round = 0; round < 2; round++) {
		/* If one of these were served, there would be something to see. */
		memcpy(arg, round ? (void *)&one : (void *)&id, round ? sizeof(one) : sizeof(id));
		for (i = 0; i < NUMBERS; i++) {
			refused(numbers[i].lp64, arg);
			for (unsigned int direction = 0; direction < 4; direction++)
				for (unsigned int j = 0; j < sizeof(sizes) / sizeof(*sizes); j++)
					refused(direction << 30 | sizes[j] << 16 | 0x5600 | i, arg);
			refused(numbers[i].ours ^ 0x100, arg);
		}
		for (; i < 256; i++)
			refused(0x40085600 | i, arg);
	}
	want(!isatty(fd));
}

static void pointers(void)
{
	struct blk_snap_uuid id = taken(8192);
	struct blk_snap_snapshot_collect_images *images = new(snapshot_collect_images);
	struct blk_snap_tracker_mark_dirty_blocks *marks = new(tracker_mark_dirty_blocks);
	struct blk_snap_tracker_read_cbt_bitmap *part = new(tracker_read_cbt_bitmap);
	struct blk_snap_tracker_collect *list = new(tracker_collect);
	void *bad[] = { (void *)1, (void *)0xfffffff8, (void *)0x7fffffff, (void *)-1 };

	for (unsigned int i = 0; i < NUMBERS; i++) {
		char *last = (char *)room(4);

		memcpy(last, &id, 4);
		command(__LINE__, "cut off", numbers[i].ours, last, EFAULT);
		for (unsigned int j = 0; j < 4; j++)
			command(__LINE__, "bad pointer", numbers[i].ours, bad[j], EFAULT);
		command(__LINE__, "null pointer", numbers[i].ours, NULL, EFAULT);
	}
	for (unsigned int j = 0; j < 4; j++) {
		struct blk_snap_snapshot_append_storage *more = storage_args(id, 1, 16384, 8);

		list->count = images->count = marks->count = 2;
		list->cbt_info_array = bad[j];
		fails(EFAULT, TRACKER_COLLECT, list);
		fails(EFAULT, SNAPSHOT_COLLECT, list);
		images->id = id;
		images->image_info_array = bad[j];
		fails(EFAULT, SNAPSHOT_COLLECT_IMAGES, images);
		marks->dev_id = part->dev_id = one;
		marks->dirty_blocks_array = bad[j];
		fails(EFAULT, TRACKER_MARK_DIRTY_BLOCKS, marks);
		part->offset = 0;
		part->length = 16;
		part->buff = bad[j];
		fails(EFAULT, TRACKER_READ_CBT_MAP, part);
		more->ranges = bad[j];
		fails(EFAULT, SNAPSHOT_APPEND_STORAGE, more);
	}
	/* As many as fit in no memory. */
	marks->count = ~0u;
	marks->dirty_blocks_array = room(16);
	fails(EINVAL, TRACKER_MARK_DIRTY_BLOCKS, marks);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "version", version }, { "trackers", trackers }, { "snapshots", snapshots },
	{ "append", append }, { "images", images }, { "map", map }, { "events", events },
	{ "corrupted", corrupted }, { "wrong", wrong }, { "pointers", pointers },
};

int main(int argc, char **argv)
{
	if (argc != 5)
		die("compat CASE ONE TWO STORAGE");
	one_path = argv[2];
	one = number_of(argv[2]);
	two = number_of(argv[3]);
	storage = number_of(argv[4]);
	fd = open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR);
	if (fd < 0)
		die("/dev/" BLK_SNAP_MODULE_NAME ": %s", strerror(errno));
	for (unsigned int i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (strcmp(cases[i].name, argv[1]))
			continue;
		cases[i].run();
		return 0;
	}
	die("no case %s", argv[1]);
}
