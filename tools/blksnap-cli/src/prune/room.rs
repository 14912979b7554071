// SPDX-License-Identifier: GPL-2.0-or-later

//! Whether there is space for a merge: see [`prune`](super).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use blksnap_backup::Manifest;

use super::merge::Run;
use super::staying::Staying;
use crate::free::room;
use crate::size::Size;

/// Bytes of an extent in a list.
const LINE: u64 = 110;
/// Bytes for new manifests and directories.
const MANIFESTS: u64 = 64 << 10;

/// Fails if there is not enough space to merge into these backups, one after the other, also when
/// `removed` have gone.
pub fn check(staying: &Staying<'_>, manifests: &[&Manifest], removed: &[String]) -> Result<()> {
    let repository = staying.repository;
    // What is needed at the worst moment: after a merge, what it has merged is removed.
    let (mut used, mut most) = (0i128, 0i128);
    for manifest in manifests {
        if staying.is_based_well(manifest) {
            continue;
        }
        let (mut need, mut gain) = (0, 0);
        let mut dirs = BTreeSet::new();
        for device in &manifest.devices {
            if let Some(run) = Run::open(staying, manifest, device)? {
                need += MANIFESTS + needed(&run)?;
                if let Some(full) = run.taken_over() {
                    let meta = full.file().metadata();
                    gain -= i128::from(meta.map_or(0, |meta| meta.blocks() * 512));
                }
                for layer in &run.chain.layers {
                    if !staying.shared(manifest, &layer.dir)? {
                        dirs.insert(layer.dir.clone());
                    }
                }
            }
        }
        dirs.remove(&repository.dir(&manifest.id));
        gain += dirs
            .iter()
            .map(|dir| i128::from(allocated(dir)))
            .sum::<i128>();
        most = most.max(used + i128::from(need));
        used += i128::from(need) - gain.max(0);
    }
    let need = u64::try_from(most).unwrap_or(u64::MAX);
    let dirs = removed.iter().map(|id| repository.dir(id));
    let gain: u64 = dirs.map(|dir| allocated(&dir)).sum();
    let free = room(repository.path())?.free;
    ensure!(
        free.saturating_add(gain) >= need,
        "merging needs about {} of free space, and there are {}: free some, or keep fewer",
        Size(need),
        Size(free.saturating_add(gain))
    );
    Ok(())
}

/// About how many bytes a merge needs.
fn needed(run: &Run) -> Result<u64> {
    // The list of what is seen of the full file, and the merged one.
    let layers = run.chain.layers.iter();
    let lists = 2 * LINE * layers.map(|layer| layer.extents.count()).sum::<u64>();
    let Some(full) = run.taken_over() else {
        return Ok(lists + run.bytes()?);
    };
    // What is compressed is not written over.
    if full.device.file_format.is_compressed(&full.file())? {
        return Ok(lists + run.bytes()?);
    }
    let mut data = 0;
    for seen in run.chain.seen(&run.chain.all()) {
        let seen = seen?;
        if seen.is_zeros() || !run.moves(seen.layer) {
            continue;
        }
        data += seen.bytes();
        for part in &seen.parts {
            // Where the full file has data, it has space.
            for there in full.extents.overlapping(part.clone()) {
                let there = there?;
                if there.hash.is_some() {
                    let end = there.range().end.min(part.end);
                    data -= end - there.start.max(part.start);
                }
            }
        }
    }
    Ok(lists + data)
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

#[cfg(test)]
mod tests {
    use blksnap_backup::Repository;
    use blksnap_backup::testing::Store;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_merge_needs_is_known() {
        // Of a compressed file, nothing is written over.
        for (store, need) in [
            (Store::new(4 * MIB), MIB),
            (Store::compressed(4 * MIB), 2 * MIB),
        ] {
            is_needed(store, need);
        }
    }

    fn is_needed(store: Store, need: u64) {
        let mut data = vec![5; 4 << 20];
        data[2 << 20..].fill(0);
        let full = store.full(&data);
        // One half where there is data, one where there is a hole.
        data[1 << 20..3 << 20].fill(6);
        let changed = MIB..3 * MIB;
        let next = store.incremental(&full, &data, &[changed]);
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(&next).unwrap();
        let staying = Staying::of(&repository, [next.clone()]);
        let run = Run::open(&staying, &manifest, &manifest.devices[0]);
        let run = run.unwrap().unwrap();
        let layers = run.chain.layers.iter();
        let extents: u64 = layers.map(|layer| layer.extents.count()).sum();
        assert_eq!(needed(&run).unwrap(), need + 2 * LINE * extents);
        assert!(need > MIB || allocated(&repository.dir(&full)) >= 2 * MIB);
        assert!(room(store.path()).unwrap().free > 0);
        check(&staying, &[&manifest], &[]).unwrap();
    }
}
