// SPDX-License-Identifier: GPL-2.0-or-later

//! What is on a device that is to be overwritten: a file system, a table of partitions, a volume of
//! LVM or of a RAID that is not assembled. libblkid knows them; its program `blkid` is asked.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where there is no `blkid`, so much is looked at of the beginning and of the end: every kind
/// begins or ends there.
const LOOK: u64 = 1 << 20;

/// What blkid says of a device where it finds nothing, or several things.
const NOTHING: i32 = 2;
const SEVERAL: i32 = 8;

/// What is on a device, in words; `None` if there is nothing that is known.
pub fn found(path: &Path) -> Result<Option<String>> {
    // blkid says of what it cannot read what it says of what is empty.
    File::open(path)
        .and_then(|mut file| file.read(&mut [0; 4096]))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-o", "export", "--"]).arg(path);
    let output = match blkid.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return without_blkid(path),
        output => output.context("cannot run blkid, to see what is there")?,
    };
    match output.status.code() {
        Some(0) => Ok(Some(describe(&String::from_utf8_lossy(&output.stdout)))),
        Some(NOTHING) => Ok(None),
        Some(SEVERAL) => Ok(Some("several things at once, as blkid says".into())),
        _ => bail!(
            "blkid cannot say what is there: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// A kind of contents.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// As blkid calls it.
    pub name: String,
    version: Option<String>,
}

impl Kind {
    /// Whether it is looked for at the end of its device, so that it would be lost in a longer one.
    pub fn is_bound_to_end(&self) -> bool {
        match self.name.as_str() {
            "linux_raid_member" => !["1.1", "1.2"]
                .iter()
                .any(|one| self.version.as_deref() == Some(one)),
            name => name.ends_with("_raid_member") || name == "drbd",
        }
    }
}

/// What is in a part of a device; `None` if there is nothing that is known.
pub fn kind_at(path: &Path, range: &Range<u64>) -> Result<Option<Kind>> {
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-o", "export", "--offset", &range.start.to_string()]);
    blkid.args(["--size", &(range.end - range.start).to_string(), "--"]);
    let output = blkid.arg(path).output().context("cannot run blkid")?;
    match output.status.code() {
        Some(0) => Ok(kind_of(&String::from_utf8_lossy(&output.stdout))),
        Some(NOTHING) => Ok(None),
        Some(SEVERAL) => bail!("blkid finds several things"),
        _ => bail!(
            "blkid cannot say what is there: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// The kind that `blkid -p -o export` prints.
fn kind_of(text: &str) -> Option<Kind> {
    Some(Kind {
        name: value(text, "TYPE")?.to_owned(),
        version: value(text, "VERSION").map(str::to_owned),
    })
}

/// A value of what `blkid -p -o export` prints.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// What `blkid -p -o export` prints, for people.
fn describe(text: &str) -> String {
    let value = |key: &str| value(text, key);
    let mut words = Vec::new();
    words.extend(value("TYPE").map(str::to_owned));
    words.extend(value("PTTYPE").map(|kind| format!("a table of partitions ({kind})")));
    if words.is_empty() {
        words.push("something that blkid knows".into());
    }
    let names = ["LABEL", "UUID", "PTUUID"];
    let names = names
        .iter()
        .filter_map(|key| Some(format!("{key}={}", value(key)?)));
    let names: Vec<_> = names.collect();
    match names.is_empty() {
        true => words.join(" and "),
        false => format!("{} ({})", words.join(" and "), names.join(", ")),
    }
}

/// Where blkid is not installed, as in an initramfs: anything but zeros may be something.
fn without_blkid(path: &Path) -> Result<Option<String>> {
    let look = || -> std::io::Result<bool> {
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        for start in [0, size.saturating_sub(LOOK)] {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(start))?;
            file.by_ref().take(LOOK).read_to_end(&mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let data = look().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(data.then(|| "data of some kind (blkid is not installed, and could tell)".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blkid_says_is_told() {
        for (text, told) in [
            (
                "DEVNAME=/dev/vdc\nLABEL=my\\ data\nUUID=12-34\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n",
                "ext4 (LABEL=my\\ data, UUID=12-34)",
            ),
            (
                "DEVNAME=/dev/vda\nPTUUID=ab\nPTTYPE=gpt\n",
                "a table of partitions (gpt) (PTUUID=ab)",
            ),
            ("UUID=x\nTYPE=LVM2_member\n", "LVM2_member (UUID=x)"),
            ("", "something that blkid knows"),
        ] {
            assert_eq!(describe(text), told);
        }
    }

    #[test]
    fn what_has_its_superblock_at_the_end_is_known() {
        let is_bound = |text: &str| kind_of(text).unwrap().is_bound_to_end();
        assert!(is_bound("VERSION=1.0\nTYPE=linux_raid_member\n"));
        assert!(is_bound("VERSION=0.90.0\nTYPE=linux_raid_member\n"));
        assert!(!is_bound("VERSION=1.2\nTYPE=linux_raid_member\n"));
        assert!(is_bound("TYPE=isw_raid_member\n"));
        assert!(!is_bound("VERSION=1.0\nTYPE=ext4\n"));
        assert_eq!(kind_of("PTTYPE=dos\n"), None);
    }

    #[test]
    fn a_table_of_partitions_is_found_in_either_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut bytes = vec![0; 3 << 20];
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(found(&path).unwrap(), None);
        assert_eq!(without_blkid(&path).unwrap(), None);
        // One partition of Linux, from sector 8 on.
        bytes[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 2, 0, 8, 0, 0, 0, 0, 8, 0, 0]);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&path, &bytes).unwrap();
        let told = found(&path).unwrap().unwrap();
        assert!(
            told.contains("partitions (dos)") || told.contains("data of"),
            "{told}"
        );
        assert!(without_blkid(&path).unwrap().is_some());
        // What is at the end only.
        bytes[..512].fill(0);
        bytes[(3 << 20) - 1] = 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(without_blkid(&path).unwrap().is_some());
        assert!(found(Path::new("/nonexistent")).is_err());
    }
}
