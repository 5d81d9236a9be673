//! Clones read and written by nbdcopy and qemu-img.

use crate::noise;
use towline_bench::nbd_client::NbdUri;
use towline_tests::{Daemon, PATIENCE, Rig, args, require, run};

/// Written in one request.
const DISK_BYTES: u64 = 8 << 20;

/// A clone at a mark that the source has left behind since; the image at the mark.
fn cloned(rig: &mut Rig) -> (Daemon, String, Vec<u8>) {
    rig.start_all();
    rig.wait_live();
    let mut client = rig.client("disk0");
    client.write(0, &noise(DISK_BYTES as usize / 2, 1)).unwrap();
    client.flush().unwrap();
    let image = std::fs::read(rig.source("disk0")).unwrap();
    rig.wait_drained();
    rig.mark("m");
    let (state, socket) = (rig.path("target-state"), rig.path("clone.nbd"));
    let address = format!("unix:{}", socket.display());
    let all = args!["target", "clone", "--state", state, "--at", "m", "--nbd", address];
    let daemon = Daemon::ready(&all);
    client.write(0, &noise(DISK_BYTES as usize, 2)).unwrap();
    client.flush().unwrap();
    rig.wait_drained();
    (daemon, NbdUri::unix(&socket, "disk0").to_string(), image)
}

#[test]
fn nbdcopy_reads_and_writes_a_clone_over_several_connections() {
    require!("nbdcopy");
    let mut rig = Rig::new(1, DISK_BYTES);
    let (_clone, uri, image) = cloned(&mut rig);
    let (out, fill) = (rig.path("out"), rig.path("in"));
    run("nbdcopy", args!["-C", "4", "-R", "16", &uri, &out], PATIENCE).ok();
    assert!(std::fs::read(&out).unwrap() == image);
    let other = noise(DISK_BYTES as usize, 3);
    std::fs::write(&fill, &other).unwrap();
    run("nbdcopy", args!["-C", "4", "--flush", &fill, &uri], PATIENCE).ok();
    run("nbdcopy", args![&uri, &out], PATIENCE).ok();
    assert!(std::fs::read(&out).unwrap() == other);
    assert!(std::fs::read(rig.target("disk0")).unwrap() != other, "the target is not the clone");
}

#[test]
fn qemu_img_finds_a_clone_equal_to_the_image_at_the_mark() {
    require!("qemu-img");
    let mut rig = Rig::new(1, DISK_BYTES);
    let (_clone, uri, image) = cloned(&mut rig);
    let file = rig.path("image");
    std::fs::write(&file, &image).unwrap();
    let formats = args!["compare", "-f", "raw", "-F", "raw", file, uri];
    run("qemu-img", formats, PATIENCE).ok();
}
