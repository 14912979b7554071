// SPDX-License-Identifier: GPL-2.0
/*
 * All commands of the ABI of 2025 as a 32-bit program gives them: built with
 * `gcc -m32` against the uapi headers and run by tests/vm.d/15-compat.
 *
 *   compat2 CASE ONE TWO STORAGE
 *
 * ONE and TWO are devices of 4 MiB, STORAGE is a larger one, or one of 1 MiB for
 * the case `corrupted`. Exits with 0 if all is well, otherwise it says what is not.
 */
#include <linux/blk-filter.h>
#include <linux/blksnap.h>
#include "compat.h"

#define works(name, arg) command(__LINE__, #name, IOCTL_BLKSNAP_##name, arg, 0)
#define fails(number, name, arg) command(__LINE__, #name, IOCTL_BLKSNAP_##name, arg, number)
#define tells(dev, name, arg) device(__LINE__, dev, blkfilter_ctl_blksnap_##name, arg, sizeof(*(arg)), 0)
#define denies(number, dev, name, arg) \
	device(__LINE__, dev, blkfilter_ctl_blksnap_##name, arg, sizeof(*(arg)), number)
/* A structure of that type behind which there is no memory. */
#define new(type) ((struct type *)room(sizeof(struct type)))

static int fd, one, two;
static const char *one_path, *two_path, *storage;

static __u64 pointer(const void *at)
{
	return (unsigned long)at;
}

static void expect(int line, const char *name, int result, int wanted)
{
	int found = result ? errno : 0;

	if (result > 0)
		die("line %d: %s: result %d", line, name, result);
	if (found != wanted)
		die("line %d: %s: found %d (%s), wanted %d (%s)", line, name, found,
		    strerror(found), wanted, strerror(wanted));
}

/* Gives the command to the control device; it must fail with `wanted`, or return 0. */
static void command(int line, const char *name, unsigned int number, void *arg, int wanted)
{
	expect(line, name, ioctl(fd, number, arg), wanted);
}

/* The same for a command of a block device. */
static void device(int line, int dev, unsigned int cmd, void *arg, unsigned int length, int wanted)
{
	struct blkfilter_ctl *ctl = new(blkfilter_ctl);
	struct blkfilter_ctl before;

	memset(ctl->name, 0, sizeof(ctl->name));
	strcpy((char *)ctl->name, BLKSNAP_FILTER_NAME);
	ctl->cmd = cmd;
	ctl->optlen = length;
	ctl->opt = pointer(arg);
	before = *ctl;
	expect(line, "CTL", ioctl(dev, BLKFILTER_CTL, ctl), wanted);
	want(!memcmp(&before, ctl, sizeof(before)) && alone(ctl));
}

static void attach(int line, int dev, int wanted)
{
	struct blkfilter_attach *args = new(blkfilter_attach);

	strcpy((char *)args->name, BLKSNAP_FILTER_NAME);
	expect(line, "ATTACH", ioctl(dev, BLKFILTER_ATTACH, args), wanted);
}

static void detach(int line, int dev, int wanted)
{
	struct blkfilter_detach *args = new(blkfilter_detach);

	strcpy((char *)args->name, BLKSNAP_FILTER_NAME);
	expect(line, "DETACH", ioctl(dev, BLKFILTER_DETACH, args), wanted);
}

static struct blksnap_uuid *named(struct blksnap_uuid id)
{
	struct blksnap_uuid *args = new(blksnap_uuid);

	*args = id;
	return args;
}

static struct blksnap_uuid create(const char *path)
{
	struct blksnap_snapshot_create *args = new(blksnap_snapshot_create);
	char *name = room(strlen(path) + 1);

	strcpy(name, path);
	args->diff_storage_limit_sect = 1ull << 40;
	args->diff_storage_filename = pointer(name);
	works(SNAPSHOT_CREATE, args);
	want(args->diff_storage_limit_sect == 1ull << 40 && args->diff_storage_filename == pointer(name));
	want(args->id.b[6] >> 4 == 4 && args->id.b[8] >> 6 == 2 && alone(args));
	return args->id;
}

/* A snapshot of TWO and ONE. */
static struct blksnap_uuid created(void)
{
	struct blksnap_uuid id = create(storage);

	attach(__LINE__, two, 0);
	attach(__LINE__, one, 0);
	tells(two, snapshotadd, named(id));
	tells(one, snapshotadd, named(id));
	return id;
}

static struct blksnap_uuid taken(void)
{
	struct blksnap_uuid id = created();

	works(SNAPSHOT_TAKE, named(id));
	return id;
}

static void version(void)
{
	struct blksnap_version *args = new(blksnap_version);

	works(VERSION, args);
	want(args->major == 2 && !args->minor && !args->revision && !args->build && alone(args));
}

static void trackers(void)
{
	struct blkfilter_attach *args = new(blkfilter_attach);

	detach(__LINE__, one, ENOENT);
	attach(__LINE__, one, 0);
	attach(__LINE__, one, EALREADY);
	attach(__LINE__, two, 0);
	detach(__LINE__, one, 0);
	detach(__LINE__, one, ENOENT);
	detach(__LINE__, two, 0);
	strcpy((char *)args->name, "other");
	expect(__LINE__, "ATTACH", ioctl(one, BLKFILTER_ATTACH, args), ENOENT);
	memset(args->name, 'a', sizeof(args->name));
	expect(__LINE__, "ATTACH", ioctl(one, BLKFILTER_ATTACH, args), EINVAL);
}

static void info(void)
{
	struct blksnap_cbtinfo *args = new(blksnap_cbtinfo);
	unsigned char *least = room(33), *most = room(40);

	denies(ENOENT, one, cbtinfo, args);
	attach(__LINE__, one, 0);
	tells(one, cbtinfo, args);
	want(args->device_capacity == SIZE && args->block_size == BLOCK && args->block_count == BLOCKS);
	want(args->generation_id.b[6] >> 4 == 4 && args->changes_number == 0 && alone(args));
	for (unsigned int i = 33; i < sizeof(*args); i++)
		want(((unsigned char *)args)[i] == 0 || ((unsigned char *)args)[i] == FILL);
	/* As much as is needed, and the structure of 64-bit programs. */
	device(__LINE__, one, blkfilter_ctl_blksnap_cbtinfo, least, 33, 0);
	device(__LINE__, one, blkfilter_ctl_blksnap_cbtinfo, most, 40, 0);
	want(!memcmp(least, args, 33) && !memcmp(most, args, 33) && alone(least) && alone(most));
	device(__LINE__, one, blkfilter_ctl_blksnap_cbtinfo, least, 32, EINVAL);
}

static void map(void)
{
	struct blksnap_cbtdirty *marks = new(blksnap_cbtdirty);
	struct blksnap_cbtmap *args = new(blksnap_cbtmap);
	struct blksnap_sectors *ranges = room(2 * sizeof(*ranges));
	unsigned char *bytes = room(BLOCKS), wanted[BLOCKS] = { 0 };
	struct blksnap_uuid id = taken();
	char *long_marks = room(16);

	marks->count = 2;
	marks->dirty_sectors = pointer(ranges);
	ranges[0].offset = 3 * BLOCK / 512 + 1;
	ranges[0].count = BLOCK / 512;
	ranges[1].offset = SIZE / 512 - 1;
	ranges[1].count = 1;
	tells(one, cbtdirty, marks);
	want(marks->count == 2 && marks->dirty_sectors == pointer(ranges) && alone(marks));
	wanted[3] = wanted[4] = wanted[BLOCKS - 1] = 1;

	args->offset = 0;
	args->length = BLOCKS;
	args->buffer = pointer(bytes);
	tells(one, cbtmap, args);
	want(!memcmp(bytes, wanted, BLOCKS) && alone(bytes) && alone(args));
	/* Only what there is. */
	memset(bytes, FILL, BLOCKS);
	args->offset = BLOCKS - 3;
	tells(one, cbtmap, args);
	want(!memcmp(bytes, wanted + BLOCKS - 3, 3) && filled(bytes + 3, bytes + BLOCKS));
	args->offset = BLOCKS;
	denies(ENODATA, one, cbtmap, args);
	args->offset = ~0u;
	denies(ENODATA, one, cbtmap, args);

	/* The structure is that of 32-bit programs, however long it is said to be. */
	memcpy(long_marks, marks, sizeof(*marks));
	ranges[0].offset = 10 * BLOCK / 512;
	ranges[0].count = 1;
	device(__LINE__, one, blkfilter_ctl_blksnap_cbtdirty, long_marks, 16, 0);
	device(__LINE__, one, blkfilter_ctl_blksnap_cbtdirty, marks, 11, EINVAL);
	wanted[10] = 1;
	ranges[0].offset = 0;
	ranges[1].count = 2; /* past the end: the first one is not marked either */
	denies(EINVAL, one, cbtdirty, marks);
	args->offset = 0;
	tells(one, cbtmap, args);
	want(!memcmp(bytes, wanted, BLOCKS));
	works(SNAPSHOT_DESTROY, named(id));
	tells(one, cbtmap, args);
}

static void snapshots(void)
{
	struct blksnap_snapshot_collect *args = new(blksnap_snapshot_collect);
	struct blksnap_uuid *ids = room(3 * sizeof(*ids));
	struct blksnap_uuid id, nobody = { { 1 } };

	args->ids = 0;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 0);
	id = created();
	args->ids = 0;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 1 && alone(args));
	args->count = 0;
	args->ids = pointer(ids);
	fails(ENODATA, SNAPSHOT_COLLECT, args);
	want(args->count == 1 && filled(ids, ids + 3));
	args->count = 3;
	works(SNAPSHOT_COLLECT, args);
	want(args->count == 1 && args->ids == pointer(ids) && alone(args) && alone(ids));
	want(!memcmp(ids, &id, 16) && filled(ids + 1, ids + 3));

	denies(EALREADY, one, snapshotadd, named(id));
	denies(ESRCH, one, snapshotadd, named(nobody));
	detach(__LINE__, one, EBUSY);
	fails(ESRCH, SNAPSHOT_TAKE, named(nobody));
	fails(ENODEV, SNAPSHOT_DESTROY, named(nobody));
	works(SNAPSHOT_DESTROY, named(id));
	fails(ENODEV, SNAPSHOT_DESTROY, named(id));
	detach(__LINE__, one, 0);
	detach(__LINE__, two, 0);
}

static void image_is(int dev, const char *path)
{
	struct blksnap_snapshotinfo *args = new(blksnap_snapshotinfo);
	char wanted[32] = "";
	struct stat status;

	want(!stat(path, &status));
	snprintf(wanted, sizeof(wanted), BLKSNAP_IMAGE_NAME "-%u-%u", major(status.st_rdev),
		 minor(status.st_rdev));
	tells(dev, snapshotinfo, args);
	want(args->error_code == 0 && !memcmp(args->image, wanted, sizeof(wanted)) && alone(args));
}

static void images(void)
{
	struct blksnap_snapshotinfo *args = new(blksnap_snapshotinfo);
	struct blksnap_unused *unused = new(blksnap_unused);
	struct blksnap_sectors *range = room(sizeof(*range));
	struct blksnap_uuid id = created();
	struct stat status;
	char none[36] = "";

	want(!stat(one_path, &status));
	tells(one, snapshotinfo, args);
	want(!memcmp(args, none, sizeof(*args)) && alone(args));
	works(SNAPSHOT_TAKE, named(id));
	fails(EALREADY, SNAPSHOT_TAKE, named(id));
	image_is(one, one_path);
	image_is(two, two_path);

	unused->id = id;
	unused->dev_id_mj = major(status.st_rdev);
	unused->dev_id_mn = minor(status.st_rdev);
	unused->flags = 0;
	unused->count = 1;
	unused->ranges = pointer(range);
	*range = (struct blksnap_sectors){ 8, 16 };
	works(UNUSED, unused);
	range->count = 0;
	fails(EINVAL, UNUSED, unused);
	want(alone(unused) && alone(range));
}

static struct blksnap_snapshot_event *waiting(struct blksnap_uuid id, unsigned int timeout_ms)
{
	struct blksnap_snapshot_event *args = new(blksnap_snapshot_event);

	args->id = id;
	args->timeout_ms = timeout_ms;
	return args;
}

static void events(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval every_second = { { 1, 0 }, { 1, 0 } }, never = { 0 };
	struct blksnap_uuid id = created(), nobody = { { 1 } };

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
	struct blksnap_uuid id = taken();
	struct blksnap_snapshotinfo *args = new(blksnap_snapshotinfo);
	struct blksnap_event_corrupted data;
	struct blksnap_snapshot_event *event;
	char *buffer = room(2 << 20);
	int writer = open(one_path, O_WRONLY);
	struct stat status[2];
	int seen[2] = { 0, 0 };

	want(!stat(one_path, &status[0]) && !stat(two_path, &status[1]));
	want(pwrite(writer, buffer, 2 << 20, 0) == 2 << 20 && !fsync(writer));
	for (int left = 2; left; left--) {
		event = waiting(id, 60000);
		works(SNAPSHOT_WAIT_EVENT, event);
		want(event->code == blksnap_event_code_corrupted && event->timeout_ms == 60000);
		want(!memcmp(&event->id, &id, 16) && event->time_label > 0 && alone(event));
		memcpy(&data, event->data, sizeof(data));
		want(data.err_code == ENOSPC);
		for (int i = 0; i < 2; i++)
			seen[i] += data.dev_id_mj == major(status[i].st_rdev) &&
				   data.dev_id_mn == minor(status[i].st_rdev);
	}
	want(seen[0] == 1 && seen[1] == 1);
	tells(one, snapshotinfo, args);
	want(args->error_code == -ENOSPC && args->image[0]);
}

static void refused(int node, unsigned int word, void *arg, int wanted)
{
	if (ioctl(node, word, arg) != -1 || errno != wanted)
		die("%#x: not refused with %d: %s", word, wanted, strerror(errno));
}

static void wrong(void)
{
	static const unsigned int ours[] = {
		0x80085600, 0xc0205601, 0x40105602, 0x40105603, 0x800c5604, 0x90005605,
	};
	unsigned int i, j, sizes[] = { 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 4095, 4096, 4097 };
	struct blksnap_uuid id = taken();
	char *arg = calloc(2, PAGE);

	for (int round = 0; round < 2; round++) {
		/* If one of these were served, there would be something to see. */
		memcpy(arg, round ? (void *)BLKSNAP_FILTER_NAME : (void *)&id, round ? 8 : sizeof(id));
		for (i = 0; i < 6; i++) {
			for (j = 0; j < 4 * sizeof(sizes) / sizeof(*sizes); j++) {
				unsigned int word = j % 4 << 30 | sizes[j / 4] << 16 | 0x5600 | i;

				if (word != ours[i])
					refused(fd, word, arg, ENOTTY);
			}
			refused(one, ours[i], arg, ENOTTY);
		}
		/* Those of 64-bit programs, and of devices. */
		refused(fd, 0x80105604, arg, ENOTTY);
		refused(fd, BLKFILTER_CTL, arg, ENOTTY);
		refused(one, 0xc030128e, arg, ENOTTY);
		for (i = 142; i < 145; i++)
			for (j = 0; j < 4 * sizeof(sizes) / sizeof(*sizes); j++) {
				unsigned int word = j % 4 << 30 | sizes[j / 4] << 16 | 0x1200 | i;

				if (word != BLKFILTER_DETACH && word != BLKFILTER_CTL && word != 0xc0c0128e &&
				    word != 0xc010128e)
					refused(one, word, arg, ENOTTY);
			}
	}
}

static void pointers(void)
{
	struct blksnap_snapshot_create *made = new(blksnap_snapshot_create);
	struct blksnap_snapshot_collect *list = new(blksnap_snapshot_collect);
	struct blksnap_cbtdirty *marks = new(blksnap_cbtdirty);
	struct blksnap_cbtmap *part = new(blksnap_cbtmap);
	static const unsigned int words[] = {
		IOCTL_BLKSNAP_VERSION, IOCTL_BLKSNAP_SNAPSHOT_CREATE, IOCTL_BLKSNAP_SNAPSHOT_DESTROY,
		IOCTL_BLKSNAP_SNAPSHOT_TAKE, IOCTL_BLKSNAP_SNAPSHOT_COLLECT, IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT,
		BLKFILTER_ATTACH, BLKFILTER_DETACH, BLKFILTER_CTL,
	};
	struct blksnap_uuid id = taken();
	char *path = room(sizeof("/dev/shm"));
	/* The last two would be good if what is above 32 bits were not looked at. */
	__u64 bad[] = { 1, 0xfffffff8, 0x7fffffff, 0xffffffff, ~0ull, 1ull << 32 | pointer(path),
			0xffffffffull << 32 | pointer(path) };

	strcpy(path, "/dev/shm");
	for (unsigned int i = 0; i < sizeof(words) / sizeof(*words); i++) {
		int node = i < 6 ? fd : one;
		char *last = (char *)room(4);

		memcpy(last, &id, 4);
		refused(node, words[i], last, EFAULT);
		refused(node, words[i], NULL, EFAULT);
		for (unsigned int j = 0; j < 4; j++)
			refused(node, words[i], (void *)(unsigned long)bad[j], EFAULT);
	}
	for (unsigned int j = 0; j < sizeof(bad) / sizeof(*bad); j++) {
		made->diff_storage_limit_sect = 1 << 20;
		made->diff_storage_filename = bad[j];
		fails(EFAULT, SNAPSHOT_CREATE, made);
		list->count = marks->count = 2;
		list->ids = marks->dirty_sectors = part->buffer = bad[j];
		part->offset = 0;
		part->length = 8;
		fails(EFAULT, SNAPSHOT_COLLECT, list);
		denies(EFAULT, one, cbtdirty, marks);
		denies(EFAULT, one, cbtmap, part);
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "version", version }, { "trackers", trackers }, { "info", info }, { "map", map },
	{ "snapshots", snapshots }, { "images", images }, { "events", events },
	{ "corrupted", corrupted }, { "wrong", wrong }, { "pointers", pointers },
};

int main(int argc, char **argv)
{
	if (argc != 5)
		die("compat2 CASE ONE TWO STORAGE");
	one_path = argv[2];
	two_path = argv[3];
	storage = argv[4];
	one = open(one_path, O_RDONLY | O_DIRECT);
	two = open(two_path, O_RDONLY | O_DIRECT);
	fd = open("/dev/" BLKSNAP_CTL, O_RDWR);
	if (fd < 0 || one < 0 || two < 0)
		die("open: %s", strerror(errno));
	for (unsigned int i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		if (strcmp(cases[i].name, argv[1]))
			continue;
		cases[i].run();
		return 0;
	}
	die("no case %s", argv[1]);
}
