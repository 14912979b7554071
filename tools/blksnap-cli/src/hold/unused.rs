// SPDX-License-Identifier: GPL-2.0-or-later

//! `--leave-out-unused`: what no file system uses at the instant is zeros in the images of
//! others, too.
//!
//! The snapshot is as good without. So what cannot be found out or told is remarked, and is no
//! failure.

use anyhow::Result;
use blksnap::state::ImageState;
use blksnap::{Image, Session};
use blksnap_backup::Source;

use crate::output;
use crate::size::Size;
use crate::used;

/// What an image has not.
#[derive(Clone, Debug, Default)]
pub struct LeftOut {
    /// Bytes that the module keeps no copies of.
    pub bytes: u64,
    /// Why that is not all that may be unused.
    pub unknown: Option<String>,
}

/// Tells the module what is not used in each image, in their order, and remarks it.
pub fn leave_out(session: &Session) -> Result<Vec<LeftOut>> {
    let images = session.images().iter();
    images.map(|image| leave_out_of(session, image)).collect()
}

fn leave_out_of(session: &Session, image: &Image) -> Result<LeftOut> {
    let size = Source::open(&image.path)?.size();
    let mut found = used::unused(&image.path, image.original, size);
    match session.give_unused(image.original, &found.bytes) {
        Ok(true) => {}
        Ok(false) => found
            .unknown
            .push("the module is too old to be told what is not used".into()),
        Err(error) => found.unknown.push(error.to_string()),
    }
    let left_out = LeftOut {
        bytes: ImageState::read(image).unused.unwrap_or(0),
        unknown: Some(found.unknown.join("; ")).filter(|why| !why.is_empty()),
    };
    let device = image.original.path();
    let device = device.display();
    if left_out.bytes > 0 {
        output::remark(format!(
            "{device}: {} that no file system uses are zeros in the image, and not kept",
            Size(left_out.bytes)
        ));
    }
    if let Some(why) = &left_out.unknown {
        output::remark(format!("{device}: unused blocks are kept, too: {why}"));
    }
    Ok(left_out)
}
