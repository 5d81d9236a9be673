//! What scripts rely on: forms, exit codes, JSON.

mod bench;
mod clone;
mod daemons;
mod forms;
mod groups;
mod groups_rig;
mod journal;
mod marks;
mod status;
mod store;
mod throttle;

const DISK_BYTES: u64 = 16 << 20;
