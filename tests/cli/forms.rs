//! Help, usage errors and what is not there.

use towline_tests::{PATIENCE, args, run, towline};

const COMMANDS: [&str; 9] =
    ["proxy", "receive", "ship", "status", "cutover", "journal", "demo", "bench", "pki"];

#[test]
fn help_lists_the_commands_and_each_has_its_own() {
    let help = run(towline(), ["--help"], PATIENCE).ok();
    for command in COMMANDS {
        assert!(help.contains(command), "{command} is not in: {help}");
        let own = run(towline(), [command, "--help"], PATIENCE).ok();
        assert!(own.contains("Usage"), "{command}: {own}");
    }
}

#[test]
fn the_version_is_told() {
    let version = run(towline(), ["--version"], PATIENCE).ok();
    assert!(version.starts_with("towline 0."), "{version}");
}

#[test]
fn what_cannot_be_used_exits_with_64_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    for wrong in [
        args![],
        args!["fly"],
        args!["proxy"],
        args!["proxy", "--group", "a", "--state", state, "--source", "x", "--nbd", "nonsense"],
        args!["proxy", "--group", "A B", "--state", state, "--source", "x", "--nbd", "unix:/tmp/x"],
        args!["ship", "--group", "a", "--state", state, "--to", "127.0.0.1:1"],
        args!["receive", "--listen", "127.0.0.1:0", "--state", state, "--insecure-loopback"],
        args!["status", "--no-such-flag"],
        args!["cutover", "a", "--state", state, "--max-pause", "soon"],
    ] {
        let finished = run(towline(), &wrong, PATIENCE);
        assert_eq!(finished.code(), 64, "{finished}");
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{finished}");
    }
}

#[test]
fn a_group_that_is_not_there_exits_with_69() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    for absent in [
        args!["cutover", "nobody", "--state", state, "--json"],
        args!["journal", "inspect", state, "--json"],
        args!["journal", "verify", state, "--json"],
    ] {
        let finished = run(towline(), &absent, PATIENCE);
        assert_eq!(finished.code(), 69, "{finished}");
        assert!(!finished.stderr.is_empty(), "{finished}");
    }
}
