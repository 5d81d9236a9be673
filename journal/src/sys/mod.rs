//! The crate's only unsafe code: the shared mapping and descriptor passing.
//! No raw pointer leaves this folder.
#![allow(unsafe_code)]

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
