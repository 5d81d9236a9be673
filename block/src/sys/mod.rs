//! The crate's only unsafe code: raw system calls and the io_uring driver.
//! No raw pointer leaves this folder.
#![allow(unsafe_code)]

mod file;
mod process;
pub mod socket;
pub mod uring;

pub use file::{free_bytes, read_passing};
pub use process::give_way;

pub(crate) use file::{
    advise_random, begin_write_back, open_passing, punch_hole, read_cached, seek_data, seek_hole,
    write_passing, zero_range,
};
