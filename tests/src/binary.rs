//! Where the `towline` binary is.

use std::ffi::OsString;
use std::path::PathBuf;

/// The binary under test: `TOWLINE_BIN`, or the one built beside this test.
///
/// # Panics
/// With what to do, when it is not there: tests cannot depend on a binary, so
/// somebody has to build it first.
pub fn towline() -> PathBuf {
    let path = std::env::var_os("TOWLINE_BIN").map_or_else(beside_this_test, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no towline binary at {}: run `cargo build --bin towline` first (scripts/test \
         does), or set TOWLINE_BIN",
        path.display()
    );
    path
}

/// Tests run from `target/<profile>/deps/`.
fn beside_this_test() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let profile = own.parent().and_then(|deps| deps.parent()).unwrap_or(&own);
    profile.join("towline")
}

/// Arguments of any kinds in one vector: `args!["ship", "--state", &dir]`.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        vec![$(::std::ffi::OsString::from($arg)),*]
    };
}

/// `NAME=PATH`.
pub fn named(name: &str, path: &std::path::Path) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(path);
    text
}
