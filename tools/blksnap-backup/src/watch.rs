// SPDX-License-Identifier: GPL-2.0-or-later

//! Who watches long work, and may end it.

use anyhow::Result;

/// Is told how far work has come, and asked whether it goes on: from one thread, between pieces.
pub trait Watch: Sync {
    /// Fails if the work shall end.
    fn check(&self) -> Result<()>;

    /// So many bytes more will be done.
    fn expect(&self, _bytes: u64) {}

    /// So many bytes more are done.
    fn advance(&self, _bytes: u64) {}
}

/// Nobody: the work goes on to its end.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Watch for Nobody {
    fn check(&self) -> Result<()> {
        Ok(())
    }
}
