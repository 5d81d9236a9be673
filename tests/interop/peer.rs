//! Other people's NBD servers, killed when dropped.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_tests::PATIENCE;

pub struct Peer(Child);

impl Peer {
    /// Starts a server and waits until it serves on `socket`.
    #[track_caller]
    pub fn start(socket: &Path, program: &str, args: Vec<OsString>) -> Peer {
        // A killed server leaves it.
        let _ = std::fs::remove_file(socket);
        let child = Command::new(program).args(args).stdin(Stdio::null()).spawn();
        let peer = Peer(child.unwrap_or_else(|e| panic!("cannot start {program}: {e}")));
        let uri = NbdUri::unix(socket, "");
        let deadline = Instant::now() + PATIENCE;
        // The peer tells nobody when it listens.
        while let Err(error) = Client::connect(&uri, Options::default()) {
            assert!(Instant::now() < deadline, "{program} does not serve: {error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // `kill -9`; already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
