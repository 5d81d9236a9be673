//! The crate's only unsafe code: the shared mapping and descriptor passing.
//! No raw pointer leaves this folder.
#![allow(unsafe_code)]

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To be written; its owner calls [`Mapping::settle`] when there is time.
    Write,
    /// To be read from end to end: mapped at once, 30 to 60 ms for 256 MiB.
    Drain,
    /// To be read here and there.
    Look,
}

mod fds;
#[cfg(not(loom))]
mod mapping;
mod medium;
#[cfg(loom)]
pub(crate) mod model;
mod shm;
pub(crate) mod sync;

pub(crate) use fds::{recv_with_fds, send_with_fds};
#[cfg(not(loom))]
pub(crate) use mapping::Mapping;
pub(crate) use medium::{is_ext4, takes_direct};
#[cfg(loom)]
pub(crate) use model::Mapping;
pub(crate) use shm::allocate;
