/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libblksnap: snapshots of block devices and changed-block tracking on Linux, by the blksnap
 * kernel module.  Made of tools/blksnap-c/src by cbindgen; change it there.
 *
 * A session holds a snapshot of some devices, from blksnap_session_take() to
 * blksnap_session_destroy():
 *
 *	struct blksnap_session *session;
 *
 *	if (blksnap_session_create("/var/tmp", &session) < 0 ||
 *	    blksnap_session_add(session, "/dev/vda") < 0 ||
 *	    blksnap_session_take(session) < 0)
 *		errx(1, "%s", blksnap_last_error());
 *
 * examples/backup.c is a whole program.
 *
 * Errors: functions that return an int give a negative errno when they fail, and
 * blksnap_last_error() says what failed, on what, why, and what to do.  errno is not set.
 *
 * Threads: a session may be used by several threads at once; destroying it must be the last
 * that is done with it.  A session has a thread of its own, with all signals as in the thread
 * that called blksnap_session_take(): block there what other threads are to get.  Do not use a
 * session in the child of a fork(); the child of a fork() without exec() keeps the storage files
 * of the session locked as long as it lives.
 *
 * Should there be a bug in the library, a function fails with -ENOTRECOVERABLE; it does not end
 * the process, and no exception leaves it.
 */

#ifndef BLKSNAP_H
#define BLKSNAP_H



#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The library does not know what happened: it is newer than this list.
 */
#define BLKSNAP_EVENT_OTHER 0

/**
 * Storage was asked for and could not be given. The snapshot is good as long as what it has is
 * enough.
 */
#define BLKSNAP_EVENT_TROUBLE 1

/**
 * The image of a device is lost.
 */
#define BLKSNAP_EVENT_CORRUPTED 2

/**
 * Somebody else has destroyed the snapshot.
 */
#define BLKSNAP_EVENT_GONE 3

/**
 * The ranges of a device that a backup has to read.
 */
struct blksnap_changes;

/**
 * A snapshot of some devices, its storage looked after.
 */
struct blksnap_session;

/**
 * A UUID, its bytes in the order in which they are printed.
 */
struct blksnap_uuid {
        /**
         * The bytes.
         */
        uint8_t bytes[16];
};

/**
 * The number of a block device: major() and minor() of its st_rdev.
 */
struct blksnap_device {
        /**
         * Major number.
         */
        uint32_t major;
        /**
         * Minor number.
         */
        uint32_t minor;
};

/**
 * A captured device and its image.
 */
struct blksnap_image {
        /**
         * The device that was captured.
         */
        struct blksnap_device original;
        /**
         * The device that shows it as it was.
         */
        struct blksnap_device device;
        /**
         * The path of that device; valid until the session is destroyed.
         */
        const char *path;
};

/**
 * What a session has to say. It feeds its snapshot by itself: this is what it can't do.
 */
struct blksnap_event {
        /**
         * One of the numbers BLKSNAP_EVENT_*.
         */
        uint32_t kind;
        /**
         * BLKSNAP_EVENT_CORRUPTED: why, a positive errno; ENOSPC when the storage was full.
         */
        int32_t error;
        /**
         * BLKSNAP_EVENT_CORRUPTED: the original device.
         */
        struct blksnap_device device;
        /**
         * For people; what does not fit is cut off.
         */
        char text[256];
};

/**
 * A part of a device, in bytes.
 */
struct blksnap_range {
        /**
         * Where it begins.
         */
        uint64_t offset;
        /**
         * How long it is.
         */
        uint64_t length;
};

/**
 * A point in the history of a device's changes: the snapshot that a backup was made of. It is
 * what is kept with the backup, so that the next one can continue it.
 */
struct blksnap_point {
        /**
         * The generation that the number belongs to.
         */
        struct blksnap_uuid generation;
        /**
         * The number of the snapshot.
         */
        uint8_t number;
};

/**
 * A tracked device.
 */
struct blksnap_tracker {
        /**
         * The device.
         */
        struct blksnap_device device;
        /**
         * Bytes of the device.
         */
        uint64_t capacity;
        /**
         * Bytes in a tracking block: a power of two.
         */
        uint32_t block_size;
        /**
         * Number of tracking blocks; the last one may be short.
         */
        uint32_t block_count;
        /**
         * The last snapshot taken of it; number 0 if there was none.
         */
        struct blksnap_point point;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What went wrong in the last call of this thread that failed, for people; an empty string if none
 * did. Never NULL. Valid until the next call that fails in this thread.
 */
const char *blksnap_last_error(void);

/**
 * Makes a session without devices. Nothing happens yet.
 *
 * The difference storage will be in the directory `storage`, in a file without a name; or in the file,
 * or on the device, with this very path, whose contents are lost. Best on a file system that is not
 * captured; if it is, that must be ext4 or xfs, and all the storage is allocated before the take. With
 * an older kernel module it must be ext4 or xfs in any case, and what is no directory is the beginning
 * of the names of files.
 *
 * `storage` is NULL or a string; `session` is NULL or good for writing.
 */
int blksnap_session_create(const char *storage,
                           struct blksnap_session **session);

/**
 * Sets how many bytes of storage are given at most; the snapshot is lost when they are not enough.
 * -EALREADY after the take.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_set_limit(const struct blksnap_session *session,
                              uint64_t bytes);

/**
 * Sets how many bytes of storage are given at a time, at least; the kernel may ask for more. Of the
 * interface of 2022 only. -EALREADY after the take.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_set_portion(const struct blksnap_session *session,
                                uint64_t bytes);

/**
 * Lets all the storage be allocated before the take, wherever it is: for when another snapshot may
 * capture its file system meanwhile. -EALREADY after the take.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_set_reserve(const struct blksnap_session *session,
                                bool reserve);

/**
 * Sets the control interface of the kernel module that is used: 1 is that of 2022, 2 that of 2025, and
 * 0, as at first, the second where the module has it. -EINVAL for other numbers, -EALREADY after the
 * take.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_set_interface(const struct blksnap_session *session,
                                  int number);

/**
 * Adds a block device, by its path or as MAJOR:MINOR. -ENOTBLK if it is something else, -EEXIST if
 * it was added before, -EALREADY after the take.
 *
 * `session` is NULL or a session; `device` is NULL or a string.
 */
int blksnap_session_add(const struct blksnap_session *session,
                        const char *device);

/**
 * Captures all devices at one instant. From now on the images are there, and the session gives
 * the snapshot storage by itself.
 *
 * Before that, cleans up after sessions with the same storage directory whose processes were
 * killed. Blocks while storage is allocated and the file systems are written back. If it fails,
 * nothing is left, and it may be called again. -EALREADY after the take.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_take(const struct blksnap_session *session);

/**
 * Tells the identifier of the snapshot, as sysfs and the other commands of the module know it.
 *
 * `session` is NULL or a session; `id` is NULL or good for writing.
 */
int blksnap_session_id(const struct blksnap_session *session,
                       struct blksnap_uuid *id);

/**
 * Tells an image: that of the device that was added as number `index`, from 0 on. -EINVAL if there
 * are not so many.
 *
 * `session` is NULL or a session; `image` is NULL or good for writing.
 */
int blksnap_session_image(const struct blksnap_session *session,
                          size_t index,
                          struct blksnap_image *image);

/**
 * 0 while the snapshot is good. If it is lost, a negative errno for ever: -ENOSPC when its storage
 * was full, -ENODEV when somebody else has destroyed it. Never waits.
 *
 * What was read from the images before the loss is right. Ask at the end of a backup: it is good
 * if this gives 0.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_check(const struct blksnap_session *session);

/**
 * As blksnap_session_check(), but waits up to half a second for bad news: for use after a read of
 * an image has failed, which is either the original's own error, or the sign of a lost snapshot.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_check_after_error(const struct blksnap_session *session);

/**
 * A file descriptor that can be read (POLLIN) as long as blksnap_session_next_event() has
 * something to give: for poll(), epoll and the like. It belongs to the session: do not read, write
 * or close it.
 *
 * `session` is NULL or a session.
 */
int blksnap_session_fd(const struct blksnap_session *session);

/**
 * Fetches the oldest event; waits for one so many milliseconds, not at all if that is 0, and
 * without end if it is negative. 1 if there was an event, 0 if the time is over. Each event is
 * given once.
 *
 * `session` is NULL or a session; `event` is NULL or good for writing.
 */
int blksnap_session_next_event(const struct blksnap_session *session,
                               int timeout_ms,
                               struct blksnap_event *event);

/**
 * Ends a session: the snapshot and its images go, the storage files are removed. NULL is fine. The
 * session must not be used any more, even if this fails, which tells that something was left
 * behind.
 *
 * `session` is NULL or a session that nobody uses now or later.
 */
int blksnap_session_destroy(struct blksnap_session *session);

/**
 * Tells the kernel module which parts of a captured device (number `index` in the session, from
 * 0 on) had no meaning at the instant, such as the free blocks of a file system as the bitmaps
 * in its image have them. What is written there is not copied from then on, so it takes no
 * storage, and the image shows zeros there, but for what was copied before. 1 if they were told;
 * 0 if the module is too old to know that, and all is as it was. -EINVAL if a range is not
 * inside of the device.
 *
 * Best right after the take. The ranges may overlap and be in any order, and there may be more
 * of them later. Only whole sectors are told, and only whole chunks of the module (4 KiB; more
 * on devices beyond 4 TiB) count. What is told wrongly is lost for the image, and cannot be
 * taken back.
 *
 * `session` is NULL or a session; `ranges` is NULL or has `count` ranges.
 */
int blksnap_session_give_unused(const struct blksnap_session *session,
                                size_t index,
                                const struct blksnap_range *ranges,
                                size_t count);

/**
 * Tells what of a captured device (number `index` in the session, from 0 on) a backup has to read
 * that continues one made at the point `since`. It is all of it if `since` is NULL, or if what was
 * written since is not known: after a reboot, for example.
 *
 * Does not depend on the session afterwards. To be closed with blksnap_changes_close(). One thread
 * at a time may use it.
 *
 * `session` is NULL or a session; `since` is NULL or a point; `changes` is NULL or good for
 * writing.
 */
int blksnap_changes_open(const struct blksnap_session *session,
                         size_t index,
                         const struct blksnap_point *since,
                         struct blksnap_changes **changes);

/**
 * 1 if all of the device has to be read, 0 if only what has changed.
 *
 * `changes` is NULL or was opened.
 */
int blksnap_changes_is_full(const struct blksnap_changes *changes);

/**
 * Tells the point of the session's own snapshot: keep it with the backup once that is complete.
 *
 * `changes` is NULL or was opened; `point` is NULL or good for writing.
 */
int blksnap_changes_point(const struct blksnap_changes *changes,
                          struct blksnap_point *point);

/**
 * Gives the next range, in bytes: ascending, never empty, no two touch. 1 if there was one, 0 at
 * the end.
 *
 * `changes` is NULL or was opened; `offset` and `length` are NULL or good for writing.
 */
int blksnap_changes_next(struct blksnap_changes *changes,
                         uint64_t *offset,
                         uint64_t *length);

/**
 * Frees it. NULL is fine.
 *
 * `changes` is NULL or was opened, and nobody uses it now or later.
 */
void blksnap_changes_close(struct blksnap_changes *changes);

/**
 * Lists the tracked devices, in the order in which tracking began.
 *
 * `count` says for how many `trackers` has room, and is set to the number that there is.
 * `trackers` may be NULL if that is all that is wanted. -ENOBUFS if there is too little room;
 * nothing is stored then.
 *
 * `trackers` is NULL or good for writing `*count` elements; `count` is NULL or good for reading
 * and writing.
 */
int blksnap_trackers(struct blksnap_tracker *trackers,
                     size_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BLKSNAP_H */
