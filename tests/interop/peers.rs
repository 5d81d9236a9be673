//! Our own client against others' servers: what the checkers see is not an
//! agreement between our client and our server.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use towline_bench::check;
use towline_bench::nbd_client::{Client, NbdUri, Options};
use towline_bench::stamp::{Guest, GuestVolume, Plan, VolumeHistory};
use towline_tests::{PATIENCE, require};

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn start(program: &str, args: &[&str], uri: &NbdUri) -> Peer {
    let child = Command::new(program).args(args).stdin(Stdio::null()).spawn();
    let peer = Peer(child.unwrap_or_else(|e| panic!("cannot start {program}: {e}")));
    let deadline = Instant::now() + PATIENCE;
    // The peer tells nobody when it listens.
    while let Err(error) = Client::connect(uri, Options::default()) {
        assert!(Instant::now() < deadline, "{program} does not serve: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    peer
}

fn guest_finds_its_writes_on(image: &Path, uri: NbdUri) {
    let size = std::fs::metadata(image).unwrap().len();
    let volume =
        GuestVolume { history: VolumeHistory::new(0, "disk0", size), source: uri, target: None };
    let guest = Guest::start(&Plan::default(), Default::default(), vec![volume]).unwrap();
    assert!(guest.wait_for_acks(2000, PATIENCE));
    let progress = guest.progress();
    assert_eq!((progress.io_errors, progress.bad_reads), (0, 0), "{progress:?}");
    let history = guest.stop();
    let report = check::acknowledged(&history.volumes[0], image).unwrap();
    assert!(report.is_good(), "{report}");
}

fn image(dir: &Path) -> std::path::PathBuf {
    let image = dir.join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    image
}

#[test]
fn the_stamped_guest_is_right_about_qemu_nbd() {
    require!("qemu-nbd");
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (image(dir.path()), dir.path().join("s"));
    let uri = NbdUri::unix(&socket, "disk0");
    let (socket, path) = (socket.to_str().unwrap(), image.to_str().unwrap());
    let args = ["-t", "-e", "4", "-f", "raw", "-x", "disk0", "-k", socket, path];
    let _peer = start("qemu-nbd", &args, &uri);
    guest_finds_its_writes_on(&image, uri);
}

#[test]
fn the_stamped_guest_is_right_about_nbdkit() {
    require!("nbdkit");
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (image(dir.path()), dir.path().join("s"));
    let uri = NbdUri::unix(&socket, "disk0");
    let file = format!("file={}", image.display());
    let args = ["-f", "-U", socket.to_str().unwrap(), "file", &file];
    let _peer = start("nbdkit", &args, &uri);
    guest_finds_its_writes_on(&image, uri);
}
