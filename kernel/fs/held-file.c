// SPDX-License-Identifier: GPL-2.0
/*
 * Held files: space of a file that the kernel uses as it likes, as it uses a swap
 * file.
 *
 * There are two ways to the data of a held file.  Where the file system lets swap
 * files be used by their blocks, these are told by held_file_extents(), and the user
 * sends bios to the device: past the file system, which need not be the only one that
 * waits for them.  Elsewhere held_file_submit_bio() has them served by reads and
 * writes of the file, from workers.
 *
 * As long as a file is held, nobody can take its space away or change what is in it:
 *
 * - With extents it is marked as a swap file is (S_SWAPFILE).  All that would move or
 *   free blocks of such a file is refused by the VFS and by the file systems, and so
 *   are writes, writable mappings, deletion and renaming; also by who opened it before.
 *   It is not opened for writing by others any more, if none had done so before: these
 *   may still make it larger, and it cannot grow then.
 * - Otherwise it is held like the text of a program that runs, though for writing:
 *   nobody else may have it open for writing, or open it so, or truncate it.  Deleting
 *   or renaming it does no harm.
 *
 * A file that has no name, or none any more, cannot be reached at all.  The mount of
 * the file is busy, and cannot become read-only.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/held_file.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

/* Bios that are served at one time. */
#define HELD_FILE_WORKERS	8

struct held_file_worker {
	struct work_struct work;
	struct held_file *hf;
};

/**
 * struct held_file - a file that the kernel holds
 * @file: the open file
 * @held: held_file_hold() was called
 * @extents: its blocks are used, not the file
 * @alone: nobody else can open it for writing
 * @wq: serves bios, if not
 * @lock: protects @bios and @next; taken in any context
 * @bios: to be served
 * @next: the worker that is woken next
 * @workers: who serves them
 */
struct held_file {
	struct file *file;
	bool held;
	bool extents;
	bool alone;
	struct workqueue_struct *wq;
	spinlock_t lock;		/* protects bios and next */
	struct bio_list bios;
	unsigned int next;
	struct held_file_worker workers[HELD_FILE_WORKERS];
};

static blk_status_t held_file_serve(struct held_file *hf, struct bio *bio)
{
	bool write = op_is_write(bio_op(bio));
	unsigned int segments = 0;
	struct iov_iter iter;
	struct bvec_iter bi;
	struct kiocb iocb;
	struct bio_vec bv;
	ssize_t ret;
	loff_t pos;

	bio_for_each_bvec(bv, bio, bi)
		segments++;
	iov_iter_bvec(&iter, write ? ITER_SOURCE : ITER_DEST,
		      __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter), segments,
		      bio->bi_iter.bi_size);
	iter.iov_offset = bio->bi_iter.bi_offset;

	init_sync_kiocb(&iocb, hf->file);
	pos = (loff_t)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	iocb.ki_pos = pos;
	/* What is not in whole blocks goes through the page cache. */
	if (!IS_ALIGNED(pos | bio->bi_iter.bi_size, PAGE_SIZE))
		iocb.ki_flags &= ~IOCB_DIRECT;

	while (iov_iter_count(&iter)) {
		/* Some file systems leave it where it was: 9p, SMB. */
		struct iov_iter left = iter;

		if (write)
			ret = vfs_iocb_iter_write(hf->file, &iocb, &left);
		else
			ret = vfs_iocb_iter_read(hf->file, &iocb, &left);
		if (ret == -EINVAL && (iocb.ki_flags & IOCB_DIRECT)) {
			iocb.ki_flags &= ~IOCB_DIRECT;
			continue;
		}
		if (ret <= 0)
			return errno_to_blk_status(ret ?: -EIO);
		iov_iter_advance(&iter, ret);
		pos += ret;
		iocb.ki_pos = pos;
	}
	return BLK_STS_OK;
}

static void held_file_work(struct work_struct *work)
{
	struct held_file_worker *worker =
		container_of(work, struct held_file_worker, work);
	struct held_file *hf = worker->hf;
	unsigned int throttle = current->flags & PF_LOCAL_THROTTLE;
	/*
	 * Others wait for these bios to get memory.  And a writer of pages is to
	 * be held back by what it writes to, not by all there is.
	 */
	unsigned int noio = memalloc_noio_save();
	struct bio *bio;

	current->flags |= PF_LOCAL_THROTTLE;
	for (;;) {
		spin_lock_irq(&hf->lock);
		bio = bio_list_pop(&hf->bios);
		spin_unlock_irq(&hf->lock);
		if (!bio)
			break;
		bio->bi_status = held_file_serve(hf, bio);
		bio_endio(bio);
		cond_resched();
	}
	current->flags = (current->flags & ~PF_LOCAL_THROTTLE) | throttle;
	memalloc_noio_restore(noio);
}

/**
 * held_file_submit_bio - send a bio to a held file without extents
 * @hf: the file, which needs not be there any more when the bio has ended
 * @bio: a read or a write, in sectors of the file; it has no device
 *
 * Context: Any.
 */
void held_file_submit_bio(struct held_file *hf, struct bio *bio)
{
	struct held_file_worker *worker;
	unsigned long flags;

	if (!hf->wq) {
		bio_io_error(bio);
		return;
	}
	spin_lock_irqsave(&hf->lock, flags);
	bio_list_add(&hf->bios, bio);
	worker = &hf->workers[hf->next++ % HELD_FILE_WORKERS];
	/*
	 * If it is queued already, it has not looked yet.  With the lock held, as
	 * without it another one may end the bio.
	 */
	queue_work(hf->wq, &worker->work);
	spin_unlock_irqrestore(&hf->lock, flags);
}
EXPORT_SYMBOL_GPL(held_file_submit_bio);

/* The name that a client gives, as an allocated string. */
static char *held_file_name(const char __user *path)
{
	char *name = kmalloc(PATH_MAX, GFP_KERNEL);
	long len;

	if (!name)
		return ERR_PTR(-ENOMEM);
	len = strncpy_from_user(name, path, PATH_MAX);
	if (len > 0 && len < PATH_MAX)
		return name;
	kfree(name);
	if (len < 0)
		return ERR_PTR(len);
	return ERR_PTR(len ? -ENAMETOOLONG : -ENOENT);
}

static struct file *held_file_open_path(const char *name, umode_t mode)
{
	int flags = O_RDWR | O_LARGEFILE | O_NOATIME;
	struct file *file;

	if (S_ISDIR(mode))
		flags |= O_TMPFILE;
	file = filp_open(name, flags | O_DIRECT, 0600);
	if (file == ERR_PTR(-EINVAL))
		file = filp_open(name, flags, 0600);
	/* It is held, or a program that runs. */
	return file == ERR_PTR(-ETXTBSY) ? ERR_PTR(-EBUSY) : file;
}

/**
 * held_file_open - open what is to be held
 * @path: a regular file, or a directory for a file without a name, or a block device;
 *	in the caller's context
 * @dev: set to the number of a block device
 *
 * Context: Process context of who gives the path.
 * Return: The file; NULL if it is a block device; an error of opening, -EINVAL if it is
 * something else, -EBUSY if it is held or a swap file.
 */
struct held_file *held_file_open(const char __user *path, dev_t *dev)
{
	struct held_file *hf;
	struct file *file;
	struct path found;
	umode_t mode;
	char *name;
	int err;

	name = held_file_name(path);
	if (IS_ERR(name))
		return ERR_CAST(name);

	/* To open something else, a watchdog for one, may have consequences. */
	err = kern_path(name, LOOKUP_FOLLOW, &found);
	if (err)
		goto free_name;
	mode = d_backing_inode(found.dentry)->i_mode;
	path_put(&found);
	err = -EINVAL;
	if (S_ISBLK(mode))
		file = filp_open(name, O_RDONLY | O_NONBLOCK | O_LARGEFILE, 0);
	else if (S_ISREG(mode) || S_ISDIR(mode))
		file = held_file_open_path(name, mode);
	else
		goto free_name;
	err = PTR_ERR_OR_ZERO(file);
	if (err)
		goto free_name;
	/* By now the name may be that of something else. */
	mode = file_inode(file)->i_mode;
	if (S_ISBLK(mode)) {
		*dev = file_inode(file)->i_rdev;
		__fput_sync(file);
		kfree(name);
		return NULL;
	}
	err = -EINVAL;
	if (!S_ISREG(mode) || !file->f_op->write_iter || !file->f_op->read_iter)
		goto close;
	err = -EBUSY;
	if (IS_SWAPFILE(file_inode(file)))
		goto close;
	err = -ENOMEM;
	hf = kzalloc_obj(*hf);
	if (!hf)
		goto close;
	hf->file = file;
	spin_lock_init(&hf->lock);
	kfree(name);
	return hf;

close:
	__fput_sync(file);
free_name:
	kfree(name);
	return ERR_PTR(err);
}
EXPORT_SYMBOL_GPL(held_file_open);

/**
 * held_file_size - the size of a file
 * @hf: the file
 *
 * Return: The size in bytes.
 */
u64 held_file_size(struct held_file *hf)
{
	return i_size_read(file_inode(hf->file));
}
EXPORT_SYMBOL_GPL(held_file_size);

/**
 * held_file_super_dev - the block device that a file's file system is on
 * @hf: the file
 *
 * Return: Its number, or 0 if it is on none.  It may be on more than one.
 */
dev_t held_file_super_dev(struct held_file *hf)
{
	struct block_device *bdev = file_inode(hf->file)->i_sb->s_bdev;

	return bdev ? bdev->bd_dev : 0;
}
EXPORT_SYMBOL_GPL(held_file_super_dev);

/**
 * held_file_free - the space that is free on a file's file system, in bytes
 * @hf: the file
 *
 * Return: As much as users without privileges may have; 0 if that is not known.
 */
u64 held_file_free(struct held_file *hf)
{
	struct kstatfs st;

	if (vfs_statfs(&hf->file->f_path, &st))
		return 0;
	return st.f_bavail * st.f_bsize;
}
EXPORT_SYMBOL_GPL(held_file_free);

/**
 * held_file_sync - bring what was written to a file to stable storage
 * @hf: the file
 *
 * Context: Process context.
 * Return: 0 or an error of the file system.
 */
int held_file_sync(struct held_file *hf)
{
	return vfs_fsync(hf->file, 1);
}
EXPORT_SYMBOL_GPL(held_file_sync);

/**
 * held_file_allocate - allocate space for a part of a file
 * @hf: the file
 * @from: the first byte
 * @to: the byte behind the last one; the file is at least so large then
 *
 * Also while the file is held.
 *
 * Context: Process context.
 * Return: 0; -EAGAIN if the file system is frozen; -EOPNOTSUPP if it cannot do that, or
 * its error.
 */
int held_file_allocate(struct held_file *hf, u64 from, u64 to)
{
	struct file *file = hf->file;
	int ret;

	if (to > file_inode(file)->i_sb->s_maxbytes)
		return -EFBIG;
	if (from >= to)
		return 0;
	if (!hf->held)
		return vfs_fallocate(file, 0, from, to - from);

	/* As vfs_fallocate() does, which refuses what is marked as ours is. */
	if (!file->f_op->fallocate)
		return -EOPNOTSUPP;
	if (!sb_start_write_trylock(file_inode(file)->i_sb))
		return -EAGAIN;
	ret = file->f_op->fallocate(file, 0, from, to - from);
	sb_end_write(file_inode(file)->i_sb);
	return ret;
}
EXPORT_SYMBOL_GPL(held_file_allocate);

/* If we are its only writer, nobody else becomes one. */
static bool held_file_deny_writers(struct held_file *hf)
{
	int writers = 1;

	hf->alone = atomic_try_cmpxchg(&file_inode(hf->file)->i_writecount,
				       &writers, -1);
	return hf->alone;
}

#ifdef CONFIG_SWAP
static bool held_file_has_extents(struct inode *inode)
{
	const struct address_space_operations *ops = inode->i_mapping->a_ops;

	/*
	 * A file system that is to be told when it ends holds more than the file,
	 * all block groups that it is in for one, and cannot be told of growth.
	 */
	return inode->i_sb->s_bdev && ops->swap_activate &&
	       !ops->swap_deactivate && !IS_ENCRYPTED(inode) && !IS_DAX(inode);
}

/* Fills an empty tree with the file's blocks, and tells which device they are on. */
static int held_file_map(struct held_file *hf, struct swap_info_struct *sis)
{
	struct inode *inode = file_inode(hf->file);
	sector_t span;
	int ret;

	sis->bdev = inode->i_sb->s_bdev;
	sis->max = UINT_MAX;
	sis->swap_extent_root = RB_ROOT;
	ret = inode->i_mapping->a_ops->swap_activate(sis, hf->file, &span);
	return min(ret, 0);
}

static void held_file_unmap(struct swap_info_struct *sis)
{
	struct swap_extent *se, *next;

	rbtree_postorder_for_each_entry_safe(se, next, &sis->swap_extent_root,
					     rb_node)
		kfree(se);
	kfree(sis);
}

/**
 * held_file_extents - tell the extents of a held file
 * @hf: the file
 * @take: called with each, in the order of the file; it may have less than the file,
 *	as what is not a whole page of the device, or block of the file, is left out
 * @data: given to @take
 *
 * What was told before is told again: as long as the file is held it only grows.
 *
 * Context: Process context.  Others allocate for the same file before or after this.
 * Return: 0, or an error of the file system or of @take.
 */
int held_file_extents(struct held_file *hf, held_file_extent_t take, void *data)
{
	struct swap_info_struct *sis = kzalloc_obj(*sis);
	struct inode *inode = file_inode(hf->file);
	struct rb_node *node;
	u64 left;
	int ret;

	if (!sis)
		return -ENOMEM;
	ret = held_file_map(hf, sis);
	/*
	 * When the file grows, the rest of a block in which it ended may be zeroed, by
	 * way of the page cache: all of that block is written then.
	 */
	left = round_down(held_file_size(hf), (u64)i_blocksize(inode)) >> PAGE_SHIFT;
	for (node = rb_first(&sis->swap_extent_root); node && left && !ret;
	     node = rb_next(node)) {
		struct swap_extent *se =
			rb_entry(node, struct swap_extent, rb_node);
		u64 pages = min_t(u64, se->nr_pages, left);

		ret = take(data, se->start_block << (PAGE_SHIFT - SECTOR_SHIFT),
			   pages << (PAGE_SHIFT - SECTOR_SHIFT));
		left -= pages;
	}
	held_file_unmap(sis);
	return ret;
}
EXPORT_SYMBOL_GPL(held_file_extents);

static int held_file_hold_blocks(struct held_file *hf, dev_t *dev)
{
	struct inode *inode = file_inode(hf->file);
	struct swap_info_struct *sis;
	int ret;

	inode_lock(inode);
	if (IS_SWAPFILE(inode)) {
		inode_unlock(inode);
		return -EBUSY;
	}
	inode->i_flags |= S_SWAPFILE;
	/* Writes that were let through: their blocks are ours now. */
	inode_dio_wait(inode);
	inode_unlock(inode);

	sis = kzalloc_obj(*sis);
	if (!sis) {
		ret = -ENOMEM;
		goto release;
	}
	ret = filemap_write_and_wait(inode->i_mapping);
	if (!ret)
		ret = held_file_map(hf, sis);
	if (!ret)
		*dev = sis->bdev->bd_dev;
	held_file_unmap(sis);
	if (!ret) {
		/* Who has it open could still make it larger, with a hole. */
		held_file_deny_writers(hf);
		return 0;
	}
release:
	inode_lock(inode);
	inode->i_flags &= ~S_SWAPFILE;
	inode_unlock(inode);
	return ret;
}

static void held_file_release_blocks(struct held_file *hf)
{
	struct inode *inode = file_inode(hf->file);

	/* What is cached of it is not what is there. */
	invalidate_inode_pages2(inode->i_mapping);
	inode_lock(inode);
	inode->i_flags &= ~S_SWAPFILE;
	inode_unlock(inode);
}
#else /* CONFIG_SWAP */
static bool held_file_has_extents(struct inode *inode)
{
	return false;
}

int held_file_extents(struct held_file *hf, held_file_extent_t take, void *data)
{
	return -EOPNOTSUPP;
}
EXPORT_SYMBOL_GPL(held_file_extents);

static int held_file_hold_blocks(struct held_file *hf, dev_t *dev)
{
	return -EOPNOTSUPP;
}

static void held_file_release_blocks(struct held_file *hf)
{
}
#endif /* CONFIG_SWAP */

static int held_file_hold_content(struct held_file *hf)
{
	unsigned int i;

	if (IS_SWAPFILE(file_inode(hf->file)))
		return -EBUSY;
	hf->wq = alloc_workqueue("held_file", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (!hf->wq)
		return -ENOMEM;
	if (!held_file_deny_writers(hf)) {
		destroy_workqueue(hf->wq);
		hf->wq = NULL;
		return -EBUSY;
	}
	for (i = 0; i < HELD_FILE_WORKERS; i++) {
		hf->workers[i].hf = hf;
		INIT_WORK(&hf->workers[i].work, held_file_work);
	}
	return 0;
}

/**
 * held_file_hold - begin to hold a file
 * @hf: the file
 * @dev: set to the number of the device that its blocks are on
 *
 * Context: Process context.
 * Return: 1 if it is used by its blocks; 0 if by reads and writes; -EBUSY if the kernel
 * holds it already, or if somebody else could write to it; or another error.
 */
int held_file_hold(struct held_file *hf, dev_t *dev)
{
	int ret;

	if (held_file_has_extents(file_inode(hf->file))) {
		ret = held_file_hold_blocks(hf, dev);
		if (!ret) {
			hf->extents = true;
			hf->held = true;
			return 1;
		}
		/* Some of its blocks are shared with other files, for one. */
		if (ret != -EINVAL)
			return ret;
	}
	ret = held_file_hold_content(hf);
	if (!ret)
		hf->held = true;
	return ret;
}
EXPORT_SYMBOL_GPL(held_file_hold);

/**
 * held_file_put - let go of a file, and close it
 * @hf: the file, for which no bio is under way, nor comes
 *
 * The file system can be unmounted when this returns.
 *
 * Context: Process context.
 */
void held_file_put(struct held_file *hf)
{
	if (hf->wq)
		destroy_workqueue(hf->wq);
	if (hf->extents)
		held_file_release_blocks(hf);
	if (hf->alone)
		atomic_add(2, &file_inode(hf->file)->i_writecount);
	__fput_sync(hf->file);
	kfree(hf);
}
EXPORT_SYMBOL_GPL(held_file_put);
