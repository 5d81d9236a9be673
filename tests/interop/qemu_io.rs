//! qemu-io: patterns, each read back; every kind of write a guest makes.

use crate::{DISK_BYTES, served, uri};
use std::ffi::OsString;
use towline_tests::{PATIENCE, args, require, run};

/// Runs qemu-io's commands; it exits with 0 on some failures, but says them.
#[track_caller]
fn commands(uri: &str, commands: &[&str]) {
    let mut all: Vec<OsString> = args!["-f", "raw"];
    for command in commands {
        all.extend(args!["-c", *command]);
    }
    all.extend(args![uri]);
    let finished = run("qemu-io", all, PATIENCE);
    let said = format!("{}{}", finished.stdout, finished.stderr).to_lowercase();
    let complains = ["fail", "error", "mismatch", "unsupported"].iter().any(|w| said.contains(w));
    assert!(finished.status.success() && !complains, "{finished}");
}

macro_rules! qemu_io {
    ($($name:ident: $commands:expr;)+) => {$(
        #[test]
        fn $name() {
            require!("qemu-io");
            let rig = served();
            commands(&uri(&rig), &$commands);
        }
    )+};
}

qemu_io! {
    overlapping_patterns_read_back: [
        "write -P 0x11 0 1M", "write -P 0x22 512k 64k", "read -P 0x11 0 512k",
        "read -P 0x22 512k 64k", "read -P 0x11 576k 448k",
    ];
    unaligned_writes_keep_their_neighbours: [
        "write -P 0x11 0 64k", "write -P 0x33 1000 3000", "read -P 0x33 1000 3000",
        "read -P 0x11 0 1000", "read -P 0x11 4000 60000",
    ];
    forced_unit_access_is_taken: ["write -f -P 0x44 2M 64k", "read -P 0x44 2M 64k"];
    zeroes_with_and_without_unmap_read_zero: [
        "write -P 9 0 4M", "write -z 2M 64k", "read -P 0 2M 64k", "write -z -u 0 1M",
        "read -P 0 0 1M", "read -P 9 1M 1M",
    ];
    zeroes_with_fua_read_zero: ["write -P 5 4M 64k", "write -z -f 4M 64k", "read -P 0 4M 64k"];
    unaligned_zeroes_keep_their_neighbours: [
        "write -P 7 0 64k", "write -z 1000 10000", "read -P 0 1000 10000", "read -P 7 0 1000",
        "read -P 7 11000 50000",
    ];
    a_discard_and_a_flush_are_answered: ["write -P 0x55 8M 1M", "discard 8M 1M", "flush"];
    requests_in_flight_together_arrive: [
        "aio_write -P 1 16M 64k", "aio_write -P 2 17M 64k", "aio_write -P 3 18M 64k", "aio_flush",
        "read -P 1 16M 64k", "read -P 2 17M 64k", "read -P 3 18M 64k",
    ];
    a_write_of_31_mib_arrives: ["write -P 7 32M 31M", "read -P 7 32M 31M"];
}

#[test]
fn the_last_block_is_writable() {
    require!("qemu-io");
    let rig = served();
    let last = DISK_BYTES - 4096;
    let write = format!("write -P 9 {last} 4096");
    let read = format!("read -P 9 {last} 4096");
    commands(&uri(&rig), &[&write, &read]);
}
