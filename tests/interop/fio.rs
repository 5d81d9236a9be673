//! fio with its nbd engine and verification.

use crate::{served_by, uri, write_file};
use towline_tests::{PATIENCE, args, require, run};

#[test]
fn verified_sequential_and_random_writes_hold() {
    require!("fio");
    for engine in ["inline", "uring"] {
        write_and_verify(engine);
    }
}

fn write_and_verify(engine: &'static str) {
    let rig = served_by(engine);
    let engines = run("fio", ["--enghelp"], PATIENCE).ok();
    towline_tests::require_that!(engines.contains("nbd"), "this fio has no nbd engine");
    let job = format!(
        "[global]\nioengine=nbd\nuri={}\nsize=48M\nverify_fatal=1\nverify_dump=0\n\
         [seq]\nrw=write\nbs=64k\niodepth=8\nverify=crc32c\n\
         [rand]\nstonewall\nrw=randwrite\nbsrange=4k-128k\niodepth=16\nverify=crc32c\n\
         verify_backlog=64\nfsync=32\nrandrepeat=1\n",
        uri(&rig)
    );
    let path = rig.path("verify.fio");
    write_file(&path, job.as_bytes());
    let mut command = std::process::Command::new("fio");
    command.args(args!["--output-format=terse", &path]).current_dir(rig.dir.path());
    towline_tests::program::run_command(command, PATIENCE).ok();
}
