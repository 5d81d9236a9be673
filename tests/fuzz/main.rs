//! The corpora of `fuzz/` through the same entries, without a fuzzer: what was found
//! once stays found.

#[path = "../../fuzz/src/lib.rs"]
mod entries;

use std::path::Path;

/// Files of one target, in order, each through its entry. A failure names the file.
fn replay(target: &str, entry: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        println!("{}: {} bytes", file.display(), bytes.len());
        entry(&bytes);
    }
}

macro_rules! replayed {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target), entries::$target);
        }
    )*};
}

replayed! {
    nbd_handshake nbd_request batch wire_frame ring_open saved_map state_json link_line
    spill_segment activity_map mark_file device
}

#[test]
#[should_panic(expected = "reaches outside")]
fn an_entry_that_finds_something_fails_the_replay() {
    replay("nbd_request", |_| panic!("a request reaches outside"));
}
