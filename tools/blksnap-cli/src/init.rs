// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap init`: a directory is made one of backups.

use anyhow::{Result, ensure};
use blksnap_backup::Repository;

use crate::args;
use crate::opened;
use crate::output;

/// Makes one.
pub fn run(args: &args::Init) -> Result<()> {
    let path = &args.directory;
    ensure!(
        !Repository::is_one(path),
        "{} is a directory of backups already",
        path.display()
    );
    opened::remark(&Repository::create(path)?)?;
    output::print(format!("{}: backups can be made here", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let args = args::Init {
            directory: dir.path().join("a/b"),
        };
        run(&args).unwrap();
        assert!(Repository::is_one(&args.directory));
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
    }
}
