// SPDX-License-Identifier: GPL-2.0-or-later

//! Whether there is space for a merge: see [`prune`](super).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use blksnap::ByteSet;
use blksnap_backup::{Chain, Extent, Layer, Manifest, Repository};
use rustix::fs::statvfs;
use rustix::process::geteuid;

use super::merge;
use crate::size::Size;

/// Bytes of an extent in a list.
const LINE: u64 = 110;
/// Bytes for new manifests and directories.
const MANIFESTS: u64 = 64 << 10;

/// Fails if there is not enough space to make a backup full, also when `removed` have gone.
pub fn check(repository: &Repository, manifest: &Manifest, removed: &[String]) -> Result<()> {
    let mut need = 0;
    for device in &manifest.devices {
        let chain = Chain::open(repository, manifest, device)?;
        if let Some(plan) = merge::plan(&chain, manifest) {
            need += MANIFESTS + needed(&chain.layers, plan.in_place);
        }
    }
    let dirs = removed.iter().map(|id| repository.dir(id));
    let gain: u64 = dirs.map(|dir| allocated(&dir)).sum();
    let free = free(repository.path())?;
    ensure!(
        free.saturating_add(gain) >= need,
        "merging needs about {} of free space, and there are {}: free some, or keep fewer",
        Size(need),
        Size(free.saturating_add(gain))
    );
    Ok(())
}

/// About how many bytes a merge needs.
fn needed(layers: &[Layer], in_place: bool) -> u64 {
    // The list of what is seen of the full file, and the merged one.
    let lists = layers
        .iter()
        .map(|layer| layer.extents.iter().count() as u64);
    let lists = 2 * LINE * lists.sum::<u64>();
    let [full, newer @ ..] = layers else {
        return 0;
    };
    let data: u64 = match in_place {
        false => layers.iter().map(Layer::data_bytes).sum(),
        true => {
            // Where the full file has data, it has space.
            let there: ByteSet = full.extents.data().map(Extent::range).collect();
            let parts = newer
                .iter()
                .flat_map(|layer| layer.data().flat_map(|extent| layer.visible(extent)));
            let new = parts.flat_map(|part| there.outside(part));
            new.map(|part| part.end - part.start).sum()
        }
    };
    lists + data
}

/// Bytes that are free again when a directory is removed.
fn allocated(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let metas = files.filter_map(|file| file.metadata().ok());
    metas
        .filter(|meta| meta.nlink() == 1)
        .map(|meta| meta.blocks() * 512)
        .sum()
}

/// Bytes that this process can still use.
fn free(path: &Path) -> Result<u64> {
    let stat = statvfs(path)
        .with_context(|| format!("cannot find out how much is free in {}", path.display()))?;
    let blocks = match geteuid().is_root() {
        true => stat.f_bfree,
        false => stat.f_bavail,
    };
    Ok(blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use blksnap_backup::testing::Store;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_merge_needs_is_known() {
        let store = Store::new(4 * MIB);
        let mut data = vec![5; 4 << 20];
        data[2 << 20..].fill(0);
        let full = store.full(&data);
        // One half where there is data, one where there is a hole.
        data[1 << 20..3 << 20].fill(6);
        let changed = MIB..3 * MIB;
        let next = store.incremental(&full, &data, &[changed]);
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(&next).unwrap();
        let chain = Chain::open(&repository, &manifest, &manifest.devices[0]).unwrap();
        let lists = 2 * LINE * 5;
        assert_eq!(needed(&chain.layers, true), MIB + lists);
        assert_eq!(needed(&chain.layers, false), 3 * MIB + lists);
        assert!(allocated(&repository.dir(&full)) >= 2 * MIB);
        assert!(free(store.path()).unwrap() > 0);
        check(&repository, &manifest, &[]).unwrap();
    }
}
