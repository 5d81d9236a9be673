//! The server as a client sees it: raw bytes over real sockets.

mod client;
mod gate;
mod handshake;
mod hostile;
mod rig;
mod transmission;
