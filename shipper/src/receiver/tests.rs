//! What crashes leave, and what recovery makes of it.
//!
//! A run of the receiver's core is recorded change by change ([`disk`]); from the
//! recording every state is rebuilt that a kill, a torn write or a power cut
//! could leave, and only recovery is run on it. Model, generator and checker are
//! in [`history`].

mod clones;
mod crash;
mod direct;
pub(crate) mod disk;
pub(crate) mod export;
mod history;
mod logs;
mod marks;
mod remote;
mod table;
mod takeover;
