//! One fault a module: each gets the protocol's error or a sentence with what and
//! where; nothing is lost, nothing crashes, and who behaves is served on.

mod bad_requests;
mod batches;
mod certificates;
mod configuration;
mod garbage;
mod journal_version;
mod keys;
mod target_size;

use towline_tests::{Daemon, Rig};

const DISK_BYTES: u64 = 16 << 20;

fn served() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    rig
}

/// A client that behaves is served, and the process never went away.
#[track_caller]
fn assert_serves(rig: &mut Rig) {
    let mut client = rig.client("disk0");
    client.write(1 << 20, b"still here").unwrap_or_else(|e| panic!("{e}"));
    let back = client.read(1 << 20, 10).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(back, b"still here");
    assert!(rig.proxy.as_mut().is_some_and(Daemon::is_running), "the proxy is gone");
}

/// All of `words` are in the text, whatever their case.
#[track_caller]
fn assert_names(text: &str, words: &[&str]) {
    let lower = text.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "{word:?} is not in: {text}");
    }
}
