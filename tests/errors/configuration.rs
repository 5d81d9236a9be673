//! Configuration files and flags that cannot be used: refused with the place.

use crate::{DISK_BYTES, assert_names};
use towline_tests::{PATIENCE, Rig, args, run, towline};

fn with_config(rig: &Rig, command: &str, text: &str) -> towline_tests::Finished {
    let path = rig.path("towline.toml");
    std::fs::write(&path, text).unwrap();
    run(towline(), args![command, "--config", &path], PATIENCE)
}

#[test]
fn a_wrong_key_is_refused_with_its_line() {
    let rig = Rig::new(1, DISK_BYTES);
    let text = format!(
        "group = \"{}\"\nstate = \"{}\"\nnbd = [\"unix:{}\"]\nrign = \"16M\"\n",
        rig.group,
        rig.state().display(),
        rig.path("s").display()
    );
    let finished = with_config(&rig, "proxy", &text).exits(64);
    assert_names(&finished.stderr, &["towline.toml", "rign", "4"]);
    assert!(!rig.state().join(&rig.group).exists(), "nothing was begun");
}

#[test]
fn a_wrong_value_is_refused_with_its_line() {
    let rig = Rig::new(1, DISK_BYTES);
    let finished = with_config(&rig, "proxy", "\n\ngroup = 7\n").exits(64);
    assert_names(&finished.stderr, &["towline.toml", "3"]);
}

#[test]
fn a_missing_file_is_named() {
    let finished = run(towline(), args!["proxy", "--config", "/nowhere/t.toml"], PATIENCE);
    assert_ne!(finished.code(), 0);
    assert_names(&finished.stderr, &["/nowhere/t.toml"]);
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let rig = Rig::new(1, DISK_BYTES);
    std::fs::remove_file(rig.source("disk0")).unwrap();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &[&rig.source("disk0").display().to_string()]);
}

#[test]
fn a_second_proxy_on_the_same_source_is_refused() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let mut args = rig.proxy_args();
    for (flag, value) in [
        ("--group", "second".into()),
        ("--state", rig.path("state2").into_os_string()),
        ("--nbd", format!("unix:{}", rig.path("second.nbd").display()).into()),
    ] {
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args[at + 1] = value;
    }
    let finished = run(towline(), args, PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    assert_names(&finished.stderr, &[&rig.source("disk0").display().to_string()]);
    crate::assert_serves(&mut rig);
}

#[test]
fn a_second_proxy_of_the_same_group_is_refused() {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_proxy();
    let finished = run(towline(), rig.proxy_args(), PATIENCE);
    assert_ne!(finished.code(), 0, "{finished}");
    crate::assert_serves(&mut rig);
}
