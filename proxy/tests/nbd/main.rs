//! The server as a client sees it: raw bytes over real sockets.

mod asynchronous;
mod client;
mod durable;
mod gate;
mod handshake;
mod hostile;
mod link;
mod rig;
mod transmission;
mod upstream;
