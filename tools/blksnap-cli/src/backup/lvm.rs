// SPDX-License-Identifier: GPL-2.0-or-later

//! What the programs of LVM say of volume groups.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The physical volumes of a volume group, by its identity without dashes, and its name.
pub fn physical_volumes(group: &str) -> Result<Vec<(PathBuf, String)>> {
    let mut pvs = Command::new("pvs");
    pvs.args(["--noheadings", "--separator", "|"]);
    pvs.args(["-o", "vg_uuid,vg_name,pv_name"]);
    let output = pvs
        .output()
        .context("cannot run pvs, to see which disks LVM uses")?;
    ensure!(
        output.status.success(),
        "pvs cannot say which disks LVM uses: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let found = volumes_of(&String::from_utf8_lossy(&output.stdout), group);
    ensure!(
        !found.is_empty(),
        "a volume group of LVM is in use, and pvs does not show it: {group}"
    );
    Ok(found)
}

/// Those that pvs prints.
fn volumes_of(text: &str, group: &str) -> Vec<(PathBuf, String)> {
    let volume = |line: &str| {
        let mut words = line.trim().splitn(3, '|');
        let uuid = words.next()?.replace('-', "");
        let (name, volume) = (words.next()?, words.next()?);
        (uuid == group).then(|| (PathBuf::from(volume), name.to_owned()))
    };
    text.lines().filter_map(volume).collect()
}

/// The metadata of a volume group.
pub fn metadata(name: &str) -> Result<String> {
    let dir = tempfile::tempdir().context("cannot make a directory")?;
    let file = dir.path().join("metadata");
    let mut backup = Command::new("vgcfgbackup");
    backup.arg("--file").arg(&file).arg("--").arg(name);
    let output = backup.output().context("cannot run vgcfgbackup")?;
    ensure!(
        output.status.success(),
        "vgcfgbackup: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    fs::read_to_string(&file).context("vgcfgbackup has written nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_volumes_of_a_group_are_found() {
        let text = "  abcdef-0123-4567-89ab-cdef-0123-456789|data|/dev/sda2\n  \
            abcdef-0123-4567-89ab-cdef-0123-456789|data|[unknown]\n  \
            zbcdef-0123-4567-89ab-cdef-0123-456789|other|/dev/sdb\n  ||/dev/sdc\n";
        let found = volumes_of(text, "abcdef0123456789abcdef0123456789");
        let paths: Vec<_> = found
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["/dev/sda2", "[unknown]"]);
        assert_eq!(found[0].1, "data");
        assert!(volumes_of(text, "").iter().all(|(_, name)| name.is_empty()));
    }
}
