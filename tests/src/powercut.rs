//! Power cuts of a real guest in which proxy, shipper and journal run.
//!
//! ```text
//!  host                                          guest (QEMU, killed)
//!  client that knows its writes ──── NBD ──────> towline proxy ── source images ┐
//!  towline receive, target images <─ mutual TLS─ towline ship    state, spill   ├ ext4
//!  volatile disk (its cache is lost with the guest) <──────── /dev/vda ─────────┘
//! ```
//!
//! [`plan`] says from a seed what is cut when; a [`Life`] is one group from its first
//! start through several cuts; [`judge`] has what must hold after each. The client and its
//! judges are those of `towline-bench`, which know nothing of the product.

pub mod hot;
pub mod image;
pub mod judge;
pub mod life;
pub mod outcome;
pub mod plan;
pub mod site;
pub mod target;

pub use life::Life;
pub use outcome::Outcome;
pub use plan::{Cut, Durability, Phase};
