//! A group's stream as immutable objects of a store (docs/formats/store.md): the shipper
//! writes them, a receiver hydrates from them and follows.
//!
//! ```text
//!  <store>/<group>/group.json          who the group is; made once
//!                  00000001/0000000001.batches   objects of session 1, in order
//!                  00000001/0000000002.batches
//!                  00000001/0000000003.batches   an END: session 2 goes on from here
//!                  00000002/0000000001.batches
//! ```
//! The one primitive is create-if-absent. The next free place of the newest session is
//! what shippers contend for: an object of batches put there counts, an END put there
//! ends the session for good. Whatever a dead shipper still writes behind an END is
//! never looked at.
//!
//! Names are made here and never read from the store, and nothing is ever listed. Compaction
//! alone replaces objects, by their headers, once a base (`bases/`) has what they did.

mod base;
mod begun;
mod bucket;
mod compact;
mod fold;
mod frontier;
mod group;
mod names;
mod object;
mod reader;
mod sink;
mod url;
mod writer;

pub use base::{Base, BaseReader};
pub use bucket::{Answer, Bucket, Created, Objects};
pub use compact::{Compacted, Compaction, GRACE_DEFAULT, HISTORY_DEFAULT, compact, compact_at};
pub use group::GroupFile;
pub use object::{At, OBJECT_HEADER_BYTES, ObjectHeader, ObjectKind};
pub use reader::{Found, Reader};
pub(crate) use sink::run;
pub use url::StoreUrl;

use crate::batch::BATCH_BYTES_MAX;
use std::time::Duration;

/// An object is closed at this size: large enough that requests cost little beside the
/// bytes, small enough that one plain PUT does and a reader holds it in memory.
pub const OBJECT_BYTES: usize = 8 << 20;
/// No object is larger: it was closed once it had [`OBJECT_BYTES`].
pub const OBJECT_BYTES_MAX: usize = OBJECT_HEADER_BYTES + OBJECT_BYTES + BATCH_BYTES_MAX;

/// Objects on their way at once, one after the other in the stream: what fills a link of
/// 1 Gbit/s at 100 ms.
pub(crate) const PUTS_MAX: usize = 4;
/// No object is begun while one so many places before it is not durable. Part of the
/// format: who looks for the end looks no further back. More than [`PUTS_MAX`], so that
/// shippers to come may have more.
pub const AHEAD_MAX: u32 = 16;
/// Window of unacknowledged batches: all objects on their way and one being filled.
pub const WINDOW_BYTES_DEFAULT: u64 = 64 << 20;
/// How long a batch waits for others to share an object with, when no object is on its
/// way. A request costs what it costs: this bounds them to four a second.
pub(crate) const LINGER: Duration = Duration::from_millis(250);

const _: () =
    assert!(WINDOW_BYTES_DEFAULT as usize >= (PUTS_MAX + 1) * (OBJECT_BYTES + BATCH_BYTES_MAX) / 2);
const _: () = assert!(PUTS_MAX <= AHEAD_MAX as usize);

#[cfg(test)]
mod tests;
