//! The transport device: export under a live guest, travel, import, and the network again.

mod hostile;
mod lab;
mod losses;
mod travel;

const DISK_BYTES: u64 = 24 << 20;
