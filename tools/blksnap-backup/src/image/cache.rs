// SPDX-License-Identifier: GPL-2.0-or-later

//! What images keep while they are read: extents that were checked, and files that are open. Both are
//! bounded, however many images there are, and however long their chains.

use std::sync::Arc;

use anyhow::{Result, bail};
use blake3::Hash;
use quick_cache::sync::{Cache as Extents, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::buffer::{self, Buffer};
use crate::chain::Layer;
use crate::extents::Extent;
use crate::reading::Readers;

/// The checksum of data, and its length: what has the same is the same, in whichever file it is.
type Key = (Hash, u64);

/// Counts the memory of an extent.
#[derive(Clone)]
struct Room;

impl Weighter<Key, Arc<Buffer>> for Room {
    fn weight(&self, _: &Key, buffer: &Arc<Buffer>) -> u64 {
        buffer.bytes().len() as u64
    }
}

/// What several images keep together.
pub struct Cache {
    extents: Extents<Key, Arc<Buffer>, Room>,
    files: Readers,
}

impl Cache {
    /// Keeps at most so many bytes of data; room for some extents is needed at least.
    pub fn new(bytes: u64) -> Result<Self> {
        let options = OptionsBuilder::new()
            // A shard for each thread would have room for one extent, or none.
            .shards(1)
            .estimated_items_capacity((bytes / buffer::GRAIN as u64) as usize)
            .weight_capacity(bytes)
            .build();
        let Ok(options) = options else {
            bail!("cannot make a cache of {bytes} bytes");
        };
        let (hasher, life) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Ok(Self {
            extents: Extents::with_options(options, Room, hasher, life),
            files: Readers::new(true),
        })
    }

    /// The data of an extent, from `load` if it is not there. Who wants the same meanwhile waits.
    pub(super) fn extent(
        &self,
        extent: &Extent,
        load: impl FnOnce() -> Result<Buffer>,
    ) -> Result<Arc<Buffer>> {
        let Some(hash) = extent.hash else {
            bail!("zeros are not stored");
        };
        let key = (hash, extent.length);
        self.extents
            .get_or_insert_with(&key, || load().map(Arc::new))
    }

    /// Reads from the file of a layer.
    pub(super) fn read(&self, layer: &Layer, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.files.read(layer, offset, bytes)
    }

    /// Bytes of data that are kept now.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.extents.weight()
    }
}
