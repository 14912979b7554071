// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories of backups as the commands open them.

use anyhow::Result;
use blksnap_backup::Repository;

use crate::output;

/// Says if others than the owner can read something in it.
pub fn remark(repository: &Repository) -> Result<()> {
    if let Some(open) = repository.open_to_others()? {
        output::remark(format!(
            "others than the owner can read {open}, of an older blksnap: `chmod -R go= {}` mends that",
            repository.path().display()
        ));
    }
    Ok(())
}
