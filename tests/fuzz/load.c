// SPDX-License-Identifier: GPL-2.0
/*
 * Reads and writes of the captured devices and of images. What an original device holds is known:
 * each block that was written is full of its number, and of the number of that write.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <linux/fs.h>
#include "fuzz.h"

#define MOST 16 /* blocks in a write */

static uint64_t stamp(const struct device *device, uint32_t block, uint32_t number)
{
	/* Zeroes are what a block without stamp holds. */
	return number ? ((uint64_t)(device - devices + 1) << 56 | (uint64_t)block << 32 | number) : 0;
}

void load_open(struct device *device, const char *path)
{
	struct stat status;
	uint64_t range[2] = { 0 };

	device->path = path;
	device->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (device->fd < 0 || fstat(device->fd, &status) || !S_ISBLK(status.st_mode))
		die("%s: not a block device that can be opened: %s", path, strerror(errno));
	want(!ioctl(device->fd, BLKGETSIZE64, &range[1]));
	device->id = (struct blk_snap_dev_t){ major(status.st_rdev), minor(status.st_rdev) };
	device->sectors = range[1] / SECTOR;
	device->stamped = range[1] / BLOCK / 4 * 3;
	device->stamps = calloc(device->stamped, sizeof(*device->stamps));
	want(device->stamps && device->stamped > MOST && device->stamped < 1 << 24);
	if (ioctl(device->fd, BLKZEROOUT, range))
		die("%s: cannot be filled with zeroes: %s", path, strerror(errno));
}

/* Writes some blocks, or zeroes; it must not fail, whatever is done to the control device. */
void load_write(struct device *device, struct rng *rng)
{
	static _Thread_local uint64_t data[MOST * BLOCK / 8] __attribute__((aligned(PAGE)));
	uint32_t count = 1 + below(rng, MOST);
	uint32_t first = below(rng, device->stamped - count);
	uint64_t range[2] = { (uint64_t)first * BLOCK, (uint64_t)count * BLOCK };
	int zero = one_in(rng, 8);

	if (!zero)
		device->last++;
	for (uint32_t i = 0; i < count; i++) {
		device->stamps[first + i] = zero ? 0 : device->last;
		for (unsigned int j = 0; j < BLOCK / 8; j++)
			data[i * BLOCK / 8 + j] = stamp(device, first + i, device->last);
	}
	if (zero ? ioctl(device->fd, BLKZEROOUT, range) :
	    pwrite(device->fd, data, range[1], range[0]) != (ssize_t)range[1])
		die("%s: a %s at block %u failed: %s", device->path, zero ? "write of zeroes" : "write",
		    first, strerror(errno));
	atomic_fetch_add(&shared->io, 1);
}

/* `fd`, the device itself or an image of it, must hold these stamps. */
void load_check(struct device *device, int fd, const uint32_t *stamps, const char *what)
{
	static uint64_t data[MOST * BLOCK / 8] __attribute__((aligned(PAGE)));

	for (uint32_t first = 0; first < device->stamped; first += MOST) {
		uint32_t count = device->stamped - first < MOST ? device->stamped - first : MOST;

		if (pread(fd, data, count * BLOCK, (off_t)first * BLOCK) != (ssize_t)count * BLOCK)
			die("%s of %s: a read at block %u failed: %s", what, device->path, first,
			    strerror(errno));
		for (uint32_t i = 0; i < count * BLOCK / 8; i++) {
			uint32_t block = first + i * 8 / BLOCK;
			uint64_t wanted = stamp(device, block, stamps[block]);

			if (data[i] != wanted)
				die("%s of %s: block %u has %#llx at %u, wanted %#llx", what, device->path,
				    block, (unsigned long long)data[i], i * 8 % BLOCK,
				    (unsigned long long)wanted);
		}
	}
}

/* Opens an image, if there is one, reads it, and writes to it. It may fail at any point. */
void image_io(struct rng *rng)
{
	static _Thread_local char data[4 * BLOCK] __attribute__((aligned(PAGE)));
	int direct = one_in(rng, 2) ? O_DIRECT : 0, fd;
	char path[64];

	snprintf(path, sizeof(path), "/dev/" BLK_SNAP_IMAGE_NAME "%u", below(rng, 6));
	fd = open(path, O_RDWR | O_CLOEXEC | direct);
	if (fd < 0)
		return;
	for (unsigned int i = below(rng, 4); i < 4; i++) {
		off_t at = (off_t)below(rng, 1024) * BLOCK;
		size_t size = BLOCK * (1 + below(rng, 4));
		uint64_t range[2] = { at, size };

		switch (below(rng, 4)) {
		case 0: if (pwrite(fd, data, size, at) > 0) atomic_fetch_add(&shared->io, 1); break;
		case 1: ioctl(fd, one_in(rng, 2) ? BLKDISCARD : BLKZEROOUT, range); break;
		default: if (pread(fd, data, size, at) > 0) atomic_fetch_add(&shared->io, 1);
		}
	}
	close(fd);
}
