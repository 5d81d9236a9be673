//! Judges of images, given what the guest did.
//!
//! - [`acknowledged()`]: nothing that was acknowledged is missing from one volume.
//! - [`flushed()`]: nothing that a flush or FUA made durable is missing: what a volume
//!   must show after a power cut.
//! - [`prefix()`]: the volumes of a group together are a state the guest's storage
//!   went through: some prefix of the issue order that respects acknowledgements.
//! - [`identical()`]: two images read the same.
//!
//! Each must fail on a lost, a stale, a torn and (prefix) a reordered write; its
//! tests inject them. A checker reads images and histories and changes nothing.

mod acknowledged;
mod identical;
mod prefix;
mod report;
mod scan;
#[cfg(test)]
mod tests;

pub use acknowledged::{acknowledged, flushed};
pub use identical::{Comparison, identical};
pub use prefix::{Prefix, prefix};
pub use report::{Fault, Report, Violation};
pub(crate) use scan::scan;
