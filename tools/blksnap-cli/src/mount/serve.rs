// SPDX-License-Identifier: GPL-2.0-or-later

//! The answers to the kernel's requests. Several threads give them at the same time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use blksnap_backup::Repository;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use rustix::process::{getegid, geteuid};

use super::files::{self, Files};
use super::tree::{Kind, Node, ROOT, Tree};

/// How long the kernel may remember what there is: that stays as it is.
const LONG: Duration = Duration::from_secs(3600);
/// How long it may remember the directory of all backups.
const SHORT: Duration = Duration::from_secs(1);

/// All backups of a directory.
pub struct Backups {
    tree: Tree,
    files: Files,
    lists: Mutex<Lists>,
    owner: (u32, u32),
}

/// Directories that are being read, as they were when that began.
#[derive(Default)]
struct Lists {
    next: u64,
    open: HashMap<u64, Arc<Vec<Node>>>,
}

impl Backups {
    /// Of a directory, or of one backup of it.
    pub fn new(repository: Repository, only: Option<String>) -> Result<Self> {
        Ok(Self {
            tree: Tree::new(repository, only),
            files: Files::new()?,
            lists: Mutex::default(),
            owner: (geteuid().as_raw(), getegid().as_raw()),
        })
    }

    /// The directory of the backups.
    pub fn path(&self) -> &Path {
        self.tree.path()
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, node: &Node) -> FileAttr {
        let (size, kind, perm) = match node.kind {
            Kind::Device { size, .. } => (size, FileType::RegularFile, 0o400),
            _ => (0, FileType::Directory, 0o500),
        };
        FileAttr {
            ino: INodeNo(node.number),
            size,
            blocks: size.div_ceil(512),
            atime: node.time,
            mtime: node.time,
            ctime: node.time,
            crtime: node.time,
            kind,
            perm,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Backups {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = self.tree.node(parent.0);
        match parent.and_then(|parent| self.tree.find(&parent, name)) {
            Some(node) => reply.entry(&LONG, &self.attributes(&node), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let time = if number.0 == ROOT { SHORT } else { LONG };
        match self.tree.node(number.0) {
            Some(node) => reply.attr(&time, &self.attributes(&node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(node) = self.tree.node(number.0) else {
            return reply.error(Errno::ENOENT);
        };
        match self.files.open(&self.tree, &node) {
            // What the kernel has of it was checked, and is not changed by anybody.
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => {
                files::tell(&self.tree, Some(&node), &error);
                reply.error(Errno::EIO);
            }
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.read(handle.0, offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => {
                files::tell(&self.tree, self.tree.node(number.0).as_ref(), &error);
                reply.error(Errno::EIO);
            }
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.close(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(node) = self.tree.node(number.0) else {
            return reply.error(Errno::ENOENT);
        };
        match self.tree.list(&node) {
            Ok(list) => {
                let mut lists = self.lists();
                let handle = lists.next;
                lists.next += 1;
                lists.open.insert(handle, Arc::new(list));
                drop(lists);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => {
                files::tell(&self.tree, Some(&node), &error);
                reply.error(Errno::EIO);
            }
        }
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = self.lists().open.get(&handle.0).cloned();
        let Some(list) = list else {
            return reply.error(Errno::EBADF);
        };
        let dots = [(number.0, "."), (ROOT, "..")]
            .map(|(number, name)| (number, FileType::Directory, name));
        let entries = list.iter().map(|node| {
            let kind = self.attributes(node).kind;
            (node.number, kind, &*node.name)
        });
        let all = dots.into_iter().chain(entries).zip(1..);
        for ((number, kind, name), next) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.lists().open.remove(&handle.0);
        reply.ok();
    }
}
