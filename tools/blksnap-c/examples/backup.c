// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A backup program with libblksnap:
 *
 *	backup [-l LIMIT] [-x COMMAND] STORAGE DIRECTORY DEVICE...
 *
 * copies the block devices, all as they are at one instant, to files in DIRECTORY: vda.raw for
 * /dev/vda.  When it is run again, it copies only what has changed since; vda.point remembers
 * since when.  It prints the ranges that it copies.  The old contents of blocks that are
 * overwritten meanwhile go to files in the directory STORAGE, LIMIT MiB of them at most, which
 * must not be on any of the devices: a file there could be allocated from, and hide, what was
 * deleted after the instant.
 *
 * COMMAND, if there is one, is run by the shell for each device when its copy is complete and
 * the snapshot is held still, with the paths of the image and of the copy as $IMAGE and $COPY.
 *
 * Build: cc backup.c $(pkg-config --cflags --libs blksnap)
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <blksnap.h>

#define PIECE	(1024 * 1024)

static char buffer[PIECE];
static volatile sig_atomic_t stop;

static void on_signal(int number)
{
	stop = number;
}

/* DIRECTORY/name.suffix, name being the last part of the device's path. */
static char *path_of(const char *directory, const char *device, const char *suffix)
{
	const char *slash = strrchr(device, '/');
	char *path;

	if (asprintf(&path, "%s/%s.%s", directory, slash ? slash + 1 : device, suffix) < 0)
		err(1, "no memory");
	return path;
}

static int read_point(const char *path, struct blksnap_point *point)
{
	FILE *file = fopen(path, "re");
	size_t got;

	if (!file)
		return 0;
	got = fread(point, sizeof(*point), 1, file);
	fclose(file);
	return got == 1;
}

/* It is there whole or not at all. */
static int write_point(const char *path, const struct blksnap_point *point)
{
	char new[4096];
	FILE *file;
	int bad;

	snprintf(new, sizeof(new), "%s.new", path);
	file = fopen(new, "we");
	if (!file)
		return -1;
	bad = fwrite(point, sizeof(*point), 1, file) != 1 || fflush(file) || fsync(fileno(file));
	if (fclose(file) || bad || rename(new, path)) {
		unlink(new);
		return -1;
	}
	return 0;
}

static int copy_range(struct blksnap_session *session, int from, int to, uint64_t offset,
		      uint64_t length)
{
	while (length && !stop) {
		size_t piece = length < PIECE ? length : PIECE;
		ssize_t got = pread(from, buffer, piece, offset);
		char *at = buffer;

		if (got <= 0) {
			/* A lost snapshot says more than an error of its image. */
			if (blksnap_session_check_after_error(session) < 0)
				warnx("%s", blksnap_last_error());
			else
				warn("cannot read the image at %" PRIu64, offset);
			return -1;
		}
		length -= got;
		while (got) {
			ssize_t done = pwrite(to, at, got, offset);

			if (done < 0) {
				warn("cannot write the copy at %" PRIu64, offset);
				return -1;
			}
			at += done;
			offset += done;
			got -= done;
		}
	}
	return stop ? -1 : 0;
}

static int copy_ranges(struct blksnap_session *session, struct blksnap_changes *changes,
		       const char *image, const char *copy, const char *device)
{
	int from, to, more, failed = 0;
	uint64_t offset, length;

	from = open(image, O_RDONLY | O_CLOEXEC);
	to = open(copy, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (from < 0 || to < 0) {
		warn("cannot open %s", from < 0 ? image : copy);
		failed = 1;
	}
	while (!failed && (more = blksnap_changes_next(changes, &offset, &length)) != 0) {
		if (more < 0) {
			warnx("%s", blksnap_last_error());
			failed = 1;
			break;
		}
		printf("%s %" PRIu64 " %" PRIu64 "\n", device, offset, length);
		failed = copy_range(session, from, to, offset, length) < 0;
	}
	if (!failed && fsync(to)) {
		warn("cannot write %s back", copy);
		failed = 1;
	}
	if (from >= 0)
		close(from);
	if (to >= 0)
		close(to);
	return failed ? -1 : 0;
}

static int backup(struct blksnap_session *session, size_t index, const char *device,
		  const char *directory, const char *command)
{
	char *copy = path_of(directory, device, "raw");
	char *state = path_of(directory, device, "point");
	struct blksnap_changes *changes = NULL;
	struct blksnap_point point;
	struct blksnap_image image;
	int old, failed = -1;

	/* Without the copy it would be a copy of the changes alone. */
	old = access(copy, W_OK) == 0 && read_point(state, &point);
	if (blksnap_session_image(session, index, &image) < 0 ||
	    blksnap_changes_open(session, index, old ? &point : NULL, &changes) < 0 ||
	    blksnap_changes_point(changes, &point) < 0) {
		warnx("%s", blksnap_last_error());
		goto out;
	}
	printf("%s %s\n", device, blksnap_changes_is_full(changes) ? "full" : "incremental");
	if (copy_ranges(session, changes, image.path, copy, device) < 0)
		goto out;
	if (command) {
		setenv("IMAGE", image.path, 1);
		setenv("COPY", copy, 1);
		fflush(stdout);
		if (system(command)) {
			warnx("%s: %s failed", device, command);
			goto out;
		}
	}
	/* Only now is the copy known to be good. */
	if (blksnap_session_check(session) < 0) {
		warnx("%s", blksnap_last_error());
		goto out;
	}
	/*
	 * A copy that failed halfway keeps the old point: what changed since then is copied
	 * again the next time, which mends it.
	 */
	failed = write_point(state, &point);
	if (failed)
		warn("cannot write %s", state);
out:
	blksnap_changes_close(changes);
	free(copy);
	free(state);
	return failed;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	const char *command = NULL;
	struct blksnap_session *session = NULL;
	uint64_t limit = 0;
	int option, i, bad, failed = 0;

	while ((option = getopt(argc, argv, "l:x:")) != -1) {
		if (option == 'l')
			limit = strtoull(optarg, NULL, 10) << 20;
		else if (option == 'x')
			command = optarg;
		else
			return 2;
	}
	argv += optind;
	argc -= optind;
	if (argc < 3) {
		fprintf(stderr, "backup [-l LIMIT] [-x COMMAND] STORAGE DIRECTORY DEVICE...\n");
		return 2;
	}
	/* So that a signal ends the copying, and not the cleaning up after it. */
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	bad = blksnap_session_create(argv[0], &session) < 0 ||
	      (limit && blksnap_session_set_limit(session, limit) < 0);
	for (i = 2; i < argc && !bad; i++)
		bad = blksnap_session_add(session, argv[i]) < 0;
	if (bad || blksnap_session_take(session) < 0) {
		warnx("%s", blksnap_last_error());
		blksnap_session_destroy(session);
		return 1;
	}
	for (i = 2; i < argc && !failed; i++)
		failed = backup(session, i - 2, argv[i], argv[1], command) < 0;
	if (blksnap_session_destroy(session) < 0) {
		warnx("%s", blksnap_last_error());
		failed = 1;
	}
	return failed;
}
