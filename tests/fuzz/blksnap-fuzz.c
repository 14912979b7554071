// SPDX-License-Identifier: GPL-2.0
/*
 * A fuzzer of the control devices.
 *
 *   blksnap-fuzz [--seconds N] [--commands N] [--calm] [--seed N] [--phase N] STORAGE DEVICE…
 *
 * Goes on in phases of some seconds. In each, two processes of four threads give commands to
 * shared files of the control devices (commands.c and second.c, for the two interfaces) and read and write images, while the devices are
 * written (load.c); then the processes are killed, half of the time in the middle of what they do.
 * After that what they left is removed, which must succeed, and a snapshot is made and read as a
 * client would (the anchor): the devices and their images must be right. --phase repeats the random
 * choices of one phase of a seed. With --calm, half of the phases are long, and have few of the
 * commands that all others wait for, and little I/O: many more commands in all. The content of all
 * devices is lost.
 *
 * Exits with 0 if nothing was wrong; says what is, otherwise. It builds for 32 bits, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>
#include "fuzz.h"

#define PROCESSES 2
#define THREADS 4

struct shared *shared;
struct device devices[MAX_DEVICES];
unsigned int device_count;
struct blk_snap_dev_t storage;
uint64_t storage_sectors;
const char *storage_path;
unsigned int image_major;
static uint64_t seed, phase;
static int control, control2, calm;

uint64_t next(struct rng *rng)
{
	uint64_t z = (rng->state += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static struct rng rng_of(unsigned int purpose)
{
	struct rng rng = { seed };

	rng.state = next(&rng) ^ phase;
	rng.state = next(&rng) ^ purpose;
	next(&rng);
	return rng;
}

void die(const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	printf("blksnap-fuzz: seed %llu, phase %llu: %s\n", (unsigned long long)seed,
	       (unsigned long long)phase, text);
	fflush(stdout);
	shared->failed = shared->stop = 1;
	_exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

/* Gives a command that must succeed. */
static long works(unsigned int word, void *args, const char *what)
{
	long result = ioctl(control, word, args);

	if (result < 0)
		die("%s: %s", what, strerror(errno));
	return result;
}
#define works(name, args) works(IOCTL_BLK_SNAP_##name, args, #name)

/* Removes whatever the phase has left. Nobody else gives commands. */
static void remove_all(void)
{
	struct blk_snap_uuid ids[64];
	struct blk_snap_cbt_info infos[64];
	struct blk_snap_snapshot_collect snapshots = { 64, ids };
	struct blk_snap_tracker_collect trackers = { 64, infos };

	remove_second(control2);
	works(SNAPSHOT_COLLECT, &snapshots);
	for (unsigned int i = 0; i < snapshots.count; i++)
		works(SNAPSHOT_DESTROY, &ids[i]);
	works(TRACKER_COLLECT, &trackers);
	for (unsigned int i = 0; i < trackers.count; i++)
		works(TRACKER_REMOVE, &infos[i].dev_id);
	works(SNAPSHOT_COLLECT, &snapshots);
	works(TRACKER_COLLECT, &trackers);
	want(!snapshots.count && !trackers.count);
}

/* The images of a snapshot of all devices, with their stamps as of the instant. */
static void check_images(const struct blk_snap_image_info *infos, uint32_t *const *stamps)
{
	for (unsigned int i = 0; i < device_count; i++) {
		char path[64];
		int fd;

		want(infos[i].orig_dev_id.mn == devices[i].id.mn && infos[i].image_dev_id.mn == i);
		snprintf(path, sizeof(path), "/dev/" BLK_SNAP_IMAGE_NAME "%u", i);
		fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (fd < 0)
			die("%s: %s", path, strerror(errno));
		load_check(&devices[i], fd, stamps[i], "the image");
		close(fd);
	}
}

/* What a client does. It succeeds each time. */
static void anchor(void)
{
	struct blk_snap_dev_t ids[MAX_DEVICES];
	struct blk_snap_image_info infos[MAX_DEVICES];
	struct blk_snap_snapshot_create create = { device_count, ids, { { 0 } } };
	struct blk_snap_block_range range = { 0, storage_sectors };
	struct blk_snap_snapshot_append_storage append = { .dev_id = storage, .count = 1, .ranges = &range };
	struct blk_snap_snapshot_collect_images images = { .count = MAX_DEVICES, .image_info_array = infos };
	struct blk_snap_snapshot_event event = { .timeout_ms = 1000 };
	unsigned char map[PAGE], seen = 0;
	struct blk_snap_tracker_read_cbt_bitmap read = { .length = sizeof(map), .buff = map };
	uint32_t *stamps[MAX_DEVICES];
	struct rng rng = rng_of(900);
	long blocks;

	for (unsigned int i = 0; i < device_count; i++)
		ids[i] = devices[i].id;
	works(SNAPSHOT_CREATE, &create);
	append.id = images.id = event.id = create.id;
	works(SNAPSHOT_WAIT_EVENT, &event);
	want(event.code == blk_snap_event_code_low_free_space);
	works(SNAPSHOT_APPEND_STORAGE, &append);
	load_write(&devices[0], &rng);
	works(SNAPSHOT_TAKE, &create.id);
	for (unsigned int i = 0; i < device_count; i++) {
		stamps[i] = malloc(devices[i].stamped * sizeof(**stamps));
		memcpy(stamps[i], devices[i].stamps, devices[i].stamped * sizeof(**stamps));
		for (unsigned int j = 0; j < 8; j++)
			load_write(&devices[i], &rng);
	}
	works(SNAPSHOT_COLLECT_IMAGES, &images);
	want(images.count == device_count);
	check_images(infos, stamps);
	read.dev_id = ids[0];
	blocks = works(TRACKER_READ_CBT_MAP, &read);
	for (long i = 0; i < blocks; i++)
		seen |= map[i];
	want(seen == 1);
	works(SNAPSHOT_DESTROY, &create.id);
	for (unsigned int i = 0; i < device_count; i++) {
		works(TRACKER_REMOVE, &ids[i]);
		load_check(&devices[i], devices[i].fd, devices[i].stamps, "the content");
		free(stamps[i]);
	}
}

static void sleep_ms(int milliseconds)
{
	poll(NULL, 0, milliseconds);
}

static pthread_t threads[THREADS > MAX_DEVICES ? THREADS : MAX_DEVICES];
static unsigned int thread_count;

static void spawn(void *(*function)(void *), void *argument)
{
	want(!pthread_create(&threads[thread_count++], NULL, function, argument));
}

static void wait_for_threads(void)
{
	while (thread_count)
		want(!pthread_join(threads[--thread_count], NULL));
}

static int files[2]; /* of all threads of a process */

static void *work(void *name)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	want(worker);
	worker->name = name;
	worker->rng = rng_of(worker->name[8] * 16 + worker->name[18]);
	room_make(&worker->args);
	room_make(&worker->array);
	room_make(&worker->more);
	for (unsigned int i = 0; i < 4; i++) {
		worker->fds[i] = i < 2 ? dup(files[i]) : open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR | O_CLOEXEC);
		want(worker->fds[i] >= 0);
	}
	for (unsigned int i = 0; i < 2; i++) {
		worker->second[i] = open("/dev/" BLKSNAP_CTL, O_RDWR | O_CLOEXEC);
		want(worker->second[i] >= 0);
	}
	/* Only if the module was told to serve it. */
	worker->wrapped = open("/dev/bdevfilter", O_RDWR | O_CLOEXEC);
	while (!shared->stop) {
		if (one_in(&worker->rng, shared->calm ? 512 : 64))
			image_io(&worker->rng);
		if (one_in(&worker->rng, 2))
			fuzz_one(worker);
		else
			fuzz_second(worker);
	}
	return NULL;
}

static void session(unsigned int number)
{
	static char names[THREADS][32];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned int i = 0; i < 2; i++) {
		files[i] = open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR | O_CLOEXEC);
		want(files[i] >= 0);
	}
	for (unsigned int i = 0; i < THREADS; i++) {
		snprintf(names[i], sizeof(names[i]), "process %u, thread %u", number, i);
		spawn(work, names[i]);
	}
	wait_for_threads();
	_exit(0);
}

/* Ends a process within `patience` seconds; then it is killed, and must be gone within minutes. */
static void reap(pid_t pid, double patience)
{
	double start = now();
	int status, killed = 0;
	pid_t ended;

	while (!(ended = waitpid(pid, &status, WNOHANG))) {
		if (!killed && now() - start >= patience)
			killed = !kill(pid, SIGKILL);
		if (now() - start > 180)
			die("process %d hangs in the kernel", pid);
		sleep_ms(2);
	}
	want(ended == pid);
	if (shared->failed)
		exit(1);
	if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
		die("a process died of signal %d", WTERMSIG(status));
}

static void *load(void *device)
{
	struct rng rng = rng_of(800 + ((struct device *)device - devices));

	while (!shared->stop) {
		load_write(device, &rng);
		sleep_ms(below(&rng, shared->calm ? 400 : 20));
	}
	return NULL;
}

static void run_phase(void)
{
	struct rng rng = rng_of(700);
	pid_t pids[PROCESSES];

	shared->stop = 0;
	shared->calm = calm && one_in(&rng, 2);
	fflush(stdout);
	for (unsigned int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		want(pids[i] >= 0);
		if (!pids[i])
			session(i);
	}
	for (unsigned int i = 0; i < device_count; i++)
		spawn(load, &devices[i]);
	for (unsigned int i = 0; i < PROCESSES; i++) {
		sleep_ms(below(&rng, shared->calm ? 60000 : 7000));
		if (one_in(&rng, 2)) {
			reap(pids[i], 0);
			pids[i] = 0;
		}
	}
	shared->stop = 1;
	for (unsigned int i = 0; i < PROCESSES; i++)
		if (pids[i])
			reap(pids[i], 1);
	wait_for_threads();
}

static void report(double seconds)
{
	static const char *const names[] = {
		"VERSION", "TRACKER_REMOVE", "TRACKER_COLLECT", "TRACKER_READ_CBT_MAP",
		"TRACKER_MARK_DIRTY_BLOCKS", "SNAPSHOT_CREATE", "SNAPSHOT_DESTROY",
		"SNAPSHOT_APPEND_STORAGE", "SNAPSHOT_TAKE", "SNAPSHOT_COLLECT",
		"SNAPSHOT_COLLECT_IMAGES", "SNAPSHOT_WAIT_EVENT", "unknown",
	};

	printf("%lu commands, %lu reads and writes, %llu phases in %.0f s (%.0f commands/s)\n",
	       shared->commands, shared->io, (unsigned long long)phase, seconds,
	       shared->commands / seconds);
	for (unsigned int i = 0; i <= COMMANDS; i++) {
		printf("%-26s", names[i]);
		for (unsigned int error = 0; error < MAX_ERRNO; error++)
			if (shared->outcome[i][error])
				printf(" %s %lu", error ? strerrorname_np(error) : "done", shared->outcome[i][error]);
		printf("\n");
	}
	/* What was given often and has never worked was not tested. */
	for (unsigned int i = 0; i < COMMANDS; i++) {
		unsigned long given = 0;

		for (unsigned int error = 0; error < MAX_ERRNO; error++)
			given += shared->outcome[i][error];
		want(given < 100 || shared->outcome[i][0]);
	}
	report_second();
}

static void set_up(char **paths, unsigned int count)
{
	struct device target;
	int file;
	FILE *major = fopen("/sys/class/blksnap/major", "r");

	want(major && fscanf(major, "%u", &image_major) == 1);
	fclose(major);
	control = open("/dev/" BLK_SNAP_MODULE_NAME, O_RDWR | O_CLOEXEC);
	if (control < 0)
		die("/dev/" BLK_SNAP_MODULE_NAME ": %s", strerror(errno));
	control2 = open("/dev/" BLKSNAP_CTL, O_RDWR | O_CLOEXEC);
	if (control2 < 0)
		die("/dev/" BLKSNAP_CTL ": %s", strerror(errno));
	file = open(SECOND_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	want(file >= 0);
	close(file);
	remove_all();
	for (device_count = 0; device_count < count - 1; device_count++)
		load_open(&devices[device_count], paths[device_count + 1]);
	load_open(&target, paths[0]);
	storage = target.id;
	storage_path = paths[0];
	storage_sectors = target.sectors;
	close(target.fd);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' }, { "commands", required_argument, NULL, 'c' },
		{ "calm", no_argument, NULL, 'l' }, { "seed", required_argument, NULL, 'r' },
		{ "phase", required_argument, NULL, 'p' }, { 0 },
	};
	double seconds = 60, start = now();
	unsigned long commands = ~0ul;
	int option, single = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 2;
	seed = ((uint64_t)getpid() << 32 ^ time(NULL)) & 0xffffffffff;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 's': seconds = atof(optarg); break;
		case 'c': commands = strtoul(optarg, NULL, 0); break;
		case 'l': calm = 1; break;
		case 'r': seed = strtoull(optarg, NULL, 0); break;
		case 'p': phase = strtoull(optarg, NULL, 0); single = 1; break;
		default: return 2;
		}
	argc -= optind;
	if (argc < 2 || argc > MAX_DEVICES + 1) {
		fprintf(stderr, "blksnap-fuzz [--seconds N] [--commands N] [--calm] [--seed N] [--phase N] STORAGE DEVICE…\n");
		return 2;
	}
	printf("seed %llu\n", (unsigned long long)seed);
	set_up(argv + optind, argc);
	anchor();
	do {
		run_phase();
		remove_all();
		anchor();
		phase++;
	} while (!single && now() - start < seconds && shared->commands < commands);
	report(now() - start);
	return 0;
}
