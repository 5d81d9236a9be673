//! The receiver over real loopback sockets, driven by a small sender.

mod certificates;
mod cuts;
mod direct;
mod faults;
mod hostile;
mod kill;
mod lab;
mod lacking;
mod lanes;
mod sealing;
mod sessions;
mod takeover;
