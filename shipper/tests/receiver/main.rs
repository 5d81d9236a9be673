//! The receiver over real loopback sockets, driven by a small sender.

mod certificates;
mod lab;
mod sessions;
mod takeover;
