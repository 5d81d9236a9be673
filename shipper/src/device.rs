//! The transport device: a group's stream as packs on folders that travel
//! (docs/formats/device.md, docs/design/0014-device.md).
//!
//! ```text
//!  DIR/<group>/device.json           which device of which export this is; made once
//!              manifest              all packs so far, signed; replaced with every pack
//!              maps/00000001.map     what pack 1 holds and touches; on every device
//!              packs/00000001.pack   whole batches, one after the other; on one device
//! ```
//! [`Exporter`] is a shipper whose receiver is these folders: a closed pack is what is
//! durable there. [`import()`] brings the packs to the targets of a receiver, which then
//! stands where the export ended. What of it is lost is lacking there, and comes over the
//! network.
//!
//! Names are made here and never read from a device.

mod blocks;
mod export;
mod folder;
mod import;
mod later;
mod ledger;
mod manifest;
mod map;
mod pack;
mod places;
mod room;
mod set;
mod shelf;
mod sign;
mod sink;
mod travel;
mod verify;

pub use blocks::{BlockRun, BlockSet};
pub use export::{ExportPlan, ExportView, Exporter, FolderView};
pub use folder::Folder;
pub use import::{ImportConfig, Imported, Stands, import};
pub use manifest::{Manifest, PACKS_MAX, Pack};
pub use map::{MAP_MAGIC, MapHeader, PackMap};
pub use set::DeviceSet;
pub use sign::{ManifestSigner, Trust};
pub use travel::{Leg, Travel, forget, travel};
pub use verify::{Checked, PackState, verify};

pub(crate) use export::Shared;
pub(crate) use sink::run;
pub(crate) use travel::check_travelling;

use crate::batch::BATCH_BYTES_MAX;
use std::time::Duration;

/// A pack is closed at this size: 40 s of a disk of 100 MB/s are lost with an unplug, and
/// a device of 20 TB has 5000 of them.
pub const PACK_BYTES_DEFAULT: u64 = 4 << 30;
/// Least size: smaller packs cost more beside the bytes than they hold.
pub const PACK_BYTES_MIN: u64 = 1 << 20;
/// Largest size: what an unplug costs.
pub const PACK_BYTES_MAX: u64 = 1 << 40;

/// Left free on a device for manifest and maps.
pub(crate) const RESERVE_BYTES: u64 = 64 << 20;
/// A device with less room for a pack is full.
pub(crate) const ROOM_BYTES_MIN: u64 = 64 << 20;
/// A pack is written through to the device in such pieces.
pub(crate) const SYNC_BYTES: u64 = 64 << 20;
/// Pause before a device that failed is looked for again.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a pack is closed once nothing is dirty, so that claims complete and the group
/// heals.
pub(crate) const SETTLE_EVERY: Duration = Duration::from_millis(300);
/// How long it is waited for the group to be whole once everything was read: a group that
/// its guests keep broken is whole over the network, later.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(20);

const _: () = assert!(ROOM_BYTES_MIN as usize > 2 * BATCH_BYTES_MAX);

#[cfg(test)]
mod tests;
