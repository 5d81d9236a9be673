//! In terminals of several widths nothing is broken by the terminal; a reader that goes
//! away is no error; what is left out is told.

use super::{journal, trim, with_records, zero};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use towline_tests::{PATIENCE, Rig, args, run};

/// A group with every kind of record that a client can make.
fn of_all_kinds() -> Rig {
    let rig = with_records();
    let mut client = rig.client("disk0");
    zero(&mut client, 1 << 20, 65_536);
    trim(&mut client, 2 << 20, 65_536);
    client.write(super::DISK_BYTES - 65_536, &[0x5a; 65_536]).unwrap();
    client.flush().unwrap();
    rig
}

fn dir(rig: &Rig) -> PathBuf {
    rig.state().join(&rig.group)
}

/// What `towline journal ...` shows in a terminal so wide, without colours.
#[track_caller]
fn shown(rig: &Rig, columns: usize, command: &str, options: &str) -> String {
    let (program, dir) = (towline_tests::towline(), dir(rig));
    let (program, dir) = (program.display(), dir.display());
    let line = format!(
        "stty cols {columns} rows 40; NO_COLOR=1 {program} journal {command} {dir} {options}"
    );
    let finished = run("script", args!["-qec", line, "/dev/null"], PATIENCE);
    assert_eq!(finished.code(), 0, "{finished}");
    finished.stdout.replace('\r', "")
}

#[test]
fn every_command_fits_the_terminal() {
    let rig = of_all_kinds();
    for columns in [60, 80, 120] {
        for (command, options) in [
            ("inspect", ""),
            ("dump", "--all"),
            ("dump", "--hexdump=64"),
            ("tail", "-n 30"),
            ("verify", "--all"),
            ("stat", ""),
            ("map", ""),
        ] {
            let text = shown(&rig, columns, command, options);
            // The ring's path is one word: it stands out.
            let long = |line: &&str| line.chars().count() > columns && !line.contains("/dev/shm");
            let found: Vec<&str> = text.lines().filter(long).collect();
            assert!(found.is_empty(), "{command} at {columns}: {found:#?}");
            assert!(text.lines().count() > usize::from(command != "verify"), "{text}");
        }
    }
    let rows = |columns| -> Vec<usize> {
        let text = shown(&rig, columns, "map", "");
        let row =
            |line: &&str| line.len() > 12 && line[12..].chars().all(|c| ".:jJcCdDsS".contains(c));
        text.lines().filter(row).map(|line| line.len() - 12).collect()
    };
    assert_eq!((rows(60)[0], rows(80)[0], rows(120)[0]), (48, 64, 96));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let rig = of_all_kinds();
    let line =
        format!("{} journal map {}", towline_tests::towline().display(), dir(&rig).display());
    let coloured = run("script", args!["-qec", line, "/dev/null"], PATIENCE);
    assert!(coloured.stdout.contains("\x1b[36m"), "{coloured}");
    assert!(!shown(&rig, 80, "map", "").contains('\x1b'));
}

#[test]
fn what_a_limit_leaves_out_is_told_beside_the_result() {
    let rig = with_records();
    let dump = |options: &[&str]| rig.towline(journal(&dir(&rig), "dump", options)).exits(0);
    let cut = dump(&["--limit", "5"]);
    assert_eq!(cut.stdout.lines().count(), 5, "{cut}");
    assert!(cut.stderr.contains("16 more records"), "{cut}");
    // Of a selection nobody has counted the rest.
    let chosen = dump(&["--limit", "5", "--kind", "write"]);
    assert!(chosen.stderr.contains("more records follow"), "{chosen}");
    for all in [&["--limit", "21"][..], &["--limit", "0"], &[]] {
        let whole = dump(all);
        assert_eq!(whole.stdout.lines().count(), 21, "{whole}");
        assert_eq!(whole.stderr, "", "{whole}");
    }
    let json = |options: &[&str]| dump(&[&["--json"], options].concat()).json();
    assert_eq!(json(&["--limit", "5"])["more"], true);
    assert_eq!(json(&["--limit", "21"])["more"], false);
    assert_eq!(json(&[])["more"], false);
}

#[test]
fn a_payload_is_shown_as_far_as_asked() {
    let rig = with_records();
    let dump = |options: &[&str]| {
        rig.towline(journal(&dir(&rig), "dump", &[&["--limit", "1"], options].concat())).exits(0)
    };
    let cut = dump(&["--hexdump=20"]).stdout;
    let lines: Vec<&str> = cut.lines().collect();
    assert_eq!(lines.len(), 4, "{cut}");
    assert!(lines[1].contains("01 01 01") && lines[1].ends_with("|................|"), "{cut}");
    assert!(lines[3].ends_with("and 4076 bytes more"), "{cut}");
    assert_eq!(
        dump(&["--hexdump=20", "--json"]).json()["records"][0]["payload_hex"],
        "01".repeat(20)
    );
    let whole = dump(&["--payload", "--json"]).json();
    assert_eq!(whole["records"][0]["payload_hex"], "01".repeat(4096));
    assert_eq!(dump(&["--payload"]).stdout, dump(&["--hexdump"]).stdout);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let rig = of_all_kinds();
    for command in ["inspect", "dump", "tail", "verify", "stat", "map"] {
        for form in [&[][..], &["--json"]] {
            let mut child = Command::new(towline_tests::towline())
                .args(journal(&dir(&rig), command, form))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Gone before the first byte, as `| true`.
            drop(child.stdout.take());
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success() && said.is_empty(), "{command}: {ended:?}");
        }
    }
}
