//! Shipping: what crosses the wire, and the side that receives it.
//!
//! [`batch`] and [`wire`] are the formats both sides share, [`security`] and
//! [`pki`] decide who may speak, [`receiver`] is the whole target side: staging,
//! applying, points, promotion. The source side (cutting, walking, the ship
//! session) reads the journal and writes these formats. [`store`] is the way between the
//! two that needs no receiver: batches as objects of a bucket; [`device`] the one that needs
//! no network: batches as packs on disks that travel.
//!
//! Nothing here writes a source disk or a ring.

pub mod batch;
pub mod device;
pub mod error;
pub mod ids;
pub mod pki;
pub mod receiver;
pub mod security;
pub mod source;
mod spare;
pub mod store;
pub mod wire;

pub use error::{Error, ErrorKind, Result};
pub use ids::{BatchHash, Digest, GroupUuid, SessionId, SetId};
