// SPDX-License-Identifier: GPL-2.0

//! How clients control the driver: by one of several ABIs.
//!
//! Each has a front end, which decodes its commands, and has its errnos and its events: [`v1`],
//! [`v2`] and [`standalone`]. What they do is done by one [registry](registry), by the functions
//! in [`commands`], [`storing`] and [`holding`]. A snapshot is seen only by clients of the ABI by
//! which it was made; a tracker, and what is in [`sysfs`], by all.

use kernel::{
    block::filter_type,
    capability::{
        capable,
        Capability, //
    },
    miscdevice::{
        with_data::{
            SharedDevice,
            SharedRegistration, //
        },
        MiscDeviceOptions, //
    },
    prelude::*,
    sync::Arc, //
};

use front_end::FrontEnd;
use registry::Registry;

mod call;
mod client;
mod commands;
mod feeding;
mod front_end;
mod holding;
pub(crate) mod registry;
pub(crate) mod standalone;
mod storing;
mod structs;
pub(crate) mod sysfs;
pub(crate) mod v1;
pub(crate) mod v2;

/// Whether the current task may open a node of ours, whatever the node's mode says.
fn may_open() -> Result {
    if capable(Capability::SysAdmin) {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// A node in `/dev`, if there is to be one.
type Node<T> = Option<Pin<KBox<SharedRegistration<T>>>>;

fn node<T: SharedDevice>(wanted: FrontEnd, name: &'static CStr, data: T) -> Result<Node<T>> {
    if !wanted.is_wanted() {
        return Ok(None);
    }
    let options = MiscDeviceOptions { name };
    let node = KBox::pin_init(SharedRegistration::register(options, data), GFP_KERNEL)?;
    Ok(Some(node))
}

/// By what clients reach us. When it is dropped no command is under way, and none comes any more.
pub(crate) struct Doors {
    _v1: Node<v1::Node>,
    _v2: Node<v2::Node>,
    _v2_devices: Option<Pin<KBox<filter_type::Registration<v2::device::Devices>>>>,
    _standalone: Node<standalone::Node>,
    _standalone_devices: Node<standalone::DevicesNode>,
}

impl Doors {
    /// Opens those that the module was told to. Commands come before this returns.
    pub(crate) fn open(all: &Arc<Registry>) -> Result<Self> {
        use FrontEnd::*;
        let devices = if V2.is_wanted() {
            let devices = v2::device::Devices::new(all, V2);
            let devices = Arc::new(devices, GFP_KERNEL)?;
            let devices = filter_type::Registration::new(devices);
            Some(KBox::pin_init(devices, GFP_KERNEL)?)
        } else {
            None
        };
        Ok(Self {
            _v2_devices: devices,
            _v2: node(V2, c"blksnap-control", v2::Node(all.clone()))?,
            _standalone_devices: node(
                Standalone,
                c"bdevfilter",
                standalone::DevicesNode(all.clone()),
            )?,
            _standalone: node(Standalone, c"veeamblksnap", standalone::Node(all.clone()))?,
            _v1: node(V1, c"blksnap", v1::Node(all.clone()))?,
        })
    }
}
