//! The crate's only unsafe code: the shared mapping and descriptor passing.
//! No raw pointer leaves this folder.
#![allow(unsafe_code)]

mod fds;
mod mapping;

pub(crate) use fds::{recv_with_fds, send_with_fds};
pub(crate) use mapping::{Mapping, allocate, shm_free_bytes};
