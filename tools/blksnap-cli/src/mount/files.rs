// SPDX-License-Identifier: GPL-2.0-or-later

//! The files that are open. What is known of the chain of a device is in memory as long as its file is
//! open, once, however often that was opened.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, Result};
use blksnap_backup::{Cache, Damaged, Image};

use super::tree::{Node, Tree};

/// Bytes of data that are kept, of all files together: of 16 large extents.
const KEPT: u64 = 64 << 20;

/// All of them.
pub struct Files {
    cache: Arc<Cache>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// The number of the next.
    next: u64,
    handles: HashMap<u64, Arc<Image>>,
    /// By the number in the tree.
    images: HashMap<u64, Weak<Image>>,
}

impl Files {
    /// None yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            cache: Arc::new(Cache::new(KEPT)?),
            open: Mutex::default(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one, and gives the number of the open file.
    pub fn open(&self, tree: &Tree, node: &Node) -> Result<u64> {
        let known = self
            .locked()
            .images
            .get(&node.number)
            .and_then(Weak::upgrade);
        let image = match known {
            Some(image) => image,
            // Lists of extents may be long, and are read once: others are served meanwhile.
            None => Arc::new(Image::new(tree.chain(node)?, self.cache.clone())),
        };
        let mut open = self.locked();
        let number = open.next;
        open.next += 1;
        open.images.insert(node.number, Arc::downgrade(&image));
        open.handles.insert(number, image);
        Ok(number)
    }

    /// Closes one.
    pub fn close(&self, number: u64) {
        let mut open = self.locked();
        let image = open.handles.remove(&number);
        open.images.retain(|_, image| image.strong_count() > 0);
        drop(open);
        // That of a large chain takes time.
        drop(image);
    }

    /// Reads what is there of so many bytes.
    pub fn read(&self, number: u64, offset: u64, length: u32) -> Result<Vec<u8>> {
        let image = self.locked().handles.get(&number).cloned();
        let image = image.context("a file that is not open")?;
        let rest = image.size().saturating_sub(offset);
        let mut data = vec![0; rest.min(length.into()) as usize];
        if !data.is_empty() {
            image.read(offset, &mut data)?;
        }
        Ok(data)
    }
}

/// Says what could not be read, once for each file of a backup.
pub fn tell(tree: &Tree, node: Option<&Node>, error: &anyhow::Error) {
    let name = node.map_or("?", |node| &node.name);
    match error.downcast_ref::<Damaged>() {
        Some(damaged) => tree.tell_once(
            damaged.file.display().to_string(),
            format!(
                "{error:#} ({name}); reading that fails, and `blksnap verify` tells of all damage"
            ),
        ),
        None => {
            let text = format!("{error:#}");
            tree.tell_once(text.clone(), format!("{name} cannot be read: {text}"));
        }
    }
}
