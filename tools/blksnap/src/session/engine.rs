// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a session does by one interface or the other.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::health::SessionEvent;
use crate::cbt::{CbtInfo, ChangeMap};
use crate::control::Image;
use crate::error::Result;
use crate::id::DevId;
use crate::units::{ByteSet, SectorRange};

/// A snapshot by one of the interfaces.
pub(super) trait Engine: Debug + Send + Sync {
    /// Captures the devices.
    fn take(&self) -> Result<()>;
    /// The images of the devices, after that.
    fn images(&self) -> Result<Vec<Image>>;

    /// Tells what was not used at the instant; whether the module wants to know.
    fn give_unused(&self, device: DevId, ranges: &[SectorRange]) -> Result<bool>;

    /// Fails if the snapshot is lost; waits so long for bad news.
    fn check(&self, patience: Duration) -> Result<()>;
    /// Fetches the oldest event; waits for one.
    fn wait(&self, timeout: Duration) -> Option<SessionEvent>;
    /// The last trouble.
    fn trouble(&self) -> Option<String>;
    /// What can be read while there are events.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// What is known of a tracked device.
    fn tracker(&self, device: DevId) -> Result<Option<CbtInfo>>;
    /// Its whole change map.
    fn change_map(&self, info: &CbtInfo) -> Result<ChangeMap>;

    /// Bytes of storage.
    fn storage_bytes(&self) -> u64;
    /// How many times storage was given.
    fn portions(&self) -> usize;
    /// Bytes that were allocated before the take.
    fn reserved(&self) -> Option<u64>;
    /// Why storage may be changed by others.
    fn changeable(&self) -> Option<Errno>;
    /// Where storage is on a device.
    fn storage_on(&self, device: DevId) -> ByteSet;

    /// Ends the snapshot and what belongs to it.
    fn finish(&mut self) -> Result<()>;
}
