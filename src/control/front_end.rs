// SPDX-License-Identifier: GPL-2.0

//! Who serves clients of which ABI.

use crate::{
    base::params,
    image::Naming, //
};

/// Whose clients a snapshot belongs to; in the order of the parameter's names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrontEnd {
    /// [`v1`](super::v1).
    V1,
    /// [`v2`](super::v2).
    V2,
    /// [`standalone`](super::standalone).
    Standalone,
}

impl FrontEnd {
    /// Whether the module was told to serve it.
    pub(super) fn is_wanted(self) -> bool {
        params::frontends() & (1 << self as u32) != 0
    }

    /// What its images are called.
    pub(super) fn naming(self) -> Naming {
        match self {
            Self::V1 => Naming::ByMinor("blksnap-image"),
            Self::V2 => Naming::ByOriginal("blksnap-", "-"),
            Self::Standalone => Naming::ByOriginal("veeamblksnapimg_", ":"),
        }
    }
}
