//! libnbd's nbdcopy: bulk in and out, over one and several connections.

use crate::{assert_source_starts_with, noise, served, uri, write_file};
use towline_tests::{PATIENCE, require, run};

#[test]
fn a_file_copied_in_is_copied_out_unchanged() {
    require!("nbdcopy");
    let rig = served();
    let data = noise(20 << 20, 1);
    let (file, back) = (rig.path("in"), rig.path("out"));
    write_file(&file, &data);
    run("nbdcopy", ["--flush".as_ref(), file.as_os_str(), uri(&rig).as_ref()], PATIENCE).ok();
    run("nbdcopy", [uri(&rig).as_ref(), back.as_os_str()], PATIENCE).ok();
    let back = std::fs::read(back).unwrap();
    assert!(back[..data.len()] == data[..] && back[data.len()..].iter().all(|byte| *byte == 0));
    assert_source_starts_with(&rig, &data);
}

#[test]
fn four_connections_with_deep_queues_write_one_disk() {
    require!("nbdcopy");
    let rig = served();
    let data = noise(crate::DISK_BYTES as usize, 2);
    let file = rig.path("in");
    write_file(&file, &data);
    let uri = uri(&rig);
    let words = ["-C", "4", "-T", "2", "-R", "32", "--flush"];
    let args = words.iter().map(AsRef::as_ref).chain([file.as_os_str(), uri.as_ref()]);
    run("nbdcopy", args, PATIENCE).ok();
    assert_source_starts_with(&rig, &data);
}

#[test]
fn a_synchronous_copy_of_the_whole_disk_ends() {
    require!("nbdcopy");
    let rig = served();
    let back = rig.path("out");
    let uri = uri(&rig);
    run("nbdcopy", ["--synchronous".as_ref(), uri.as_ref(), back.as_os_str()], PATIENCE).ok();
    assert_eq!(std::fs::metadata(back).unwrap().len(), crate::DISK_BYTES);
}
