//! Skips: said, with a reason, and counted.

use std::io::Write;
use std::path::PathBuf;

/// Notes that `test` does not run. `scripts/test` fails when the line is not in
/// `tests/allowed-skips`.
pub fn skip(test: &str, reason: &str) {
    println!("SKIP {test}: {reason}");
    if let Some(path) = std::env::var_os("TOWLINE_SKIPS") {
        let line = format!("{test}: {reason}\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
        // One write a line: several processes append.
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|e| panic!("cannot count a skip in {}: {e}", path.display()));
    }
}

/// The first of `programs` that is not in `PATH`.
pub fn missing(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps some in sbin, which users other than root lack.
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect();
    programs
        .iter()
        .find(|program| !dirs.iter().any(|dir| dir.join(program).is_file()))
        .map(|program| (*program).to_owned())
}

/// The name of the function that uses it, as nextest prints it.
#[macro_export]
macro_rules! test_name {
    () => {{
        let name = ::std::any::type_name_of_val(&|| ());
        name.trim_end_matches("::{{closure}}")
    }};
}

/// Skips the test unless these programs are installed.
#[macro_export]
macro_rules! require {
    ($($program:literal),+ $(,)?) => {
        if let Some(program) = $crate::skip::missing(&[$($program),+]) {
            $crate::skip::skip($crate::test_name!(), &format!("{program} is not installed"));
            return;
        }
    };
}

/// Skips the test for a reason that holds when the condition does not.
#[macro_export]
macro_rules! require_that {
    ($condition:expr, $reason:literal) => {
        if !$condition {
            $crate::skip::skip($crate::test_name!(), $reason);
            return;
        }
    };
}
