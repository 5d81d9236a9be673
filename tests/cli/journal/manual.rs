//! The manual page's examples are what the program prints: each is run on a group like
//! the page's, and every line shown there must come out, numbers apart.

use super::{journal, ring_of, trim};
use std::path::Path;
use towline_tests::rig::Process;
use towline_tests::{Finished, Rig};

const MANUAL: &str = include_str!("../../../docs/man/towline-journal.md");
const DISK_BYTES: u64 = 64 << 20;
/// Where the page's application keeps its invoices.
const INVOICE_AT: u64 = 34_603_008;

/// A command of the page, and what it says of the output.
struct Example {
    command: String,
    shown: Vec<String>,
}

fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let (_, page) = MANUAL.split_once("## Examples").unwrap();
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            examples.push(Example { command: command.to_owned(), shown: Vec::new() });
        } else if inside && !line.trim().is_empty() && line != "..." {
            examples.last_mut().unwrap().shown.push(line.to_owned());
        }
    }
    examples
}

/// A line without what differs from run to run: numbers and their units, bars, plurals.
fn form(line: &str) -> String {
    let word = |word: &str| -> Option<String> {
        let bare = word.trim_matches(|c: char| ",;:()".contains(c));
        match bare {
            "B" | "KiB" | "MiB" | "GiB" | "KiB/s" | "MiB/s" | "GiB/s" | "B/s" => None,
            "ms" | "s" | "us" | "min" | "h" => None,
            "records" | "faults" | "extents" | "writes" => Some(bare.trim_end_matches('s').into()),
            "disk0" => Some("root".into()),
            _ if word.starts_with('[') && word.ends_with(['#', '-', ']']) => None,
            _ if word.len() > 20 && word.chars().all(|c| ".:jJcCdDsS".contains(c)) => {
                Some("ROW".into())
            }
            _ if bare.contains(|c: char| c.is_ascii_digit()) => Some("#".into()),
            _ => Some(bare.to_owned()),
        }
    };
    let words: Vec<String> = line.split_whitespace().filter_map(word).collect();
    words.join(" ")
}

/// The page's group: a drained one whose shipper was stopped, and what it wrote since.
fn group() -> Rig {
    let mut rig = Rig::new(1, DISK_BYTES);
    rig.start_all();
    rig.wait_drained();
    rig.kill(Process::Ship);
    std::fs::copy(rig.source("disk0"), rig.path("base.img")).unwrap();
    let mut client = rig.client("disk0");
    for n in 1..=40_u8 {
        client.write(u64::from(n) * 8192, &[n; 4096]).unwrap();
        client.write(0, &[n; 512]).unwrap();
    }
    client.write(8 << 20, &vec![7; 1 << 20]).unwrap();
    trim(&mut client, 48 << 20, 1 << 20);
    let mut invoice = b"invoice 4711 is paid".to_vec();
    invoice.resize(512, b'\n');
    client.write(INVOICE_AT, &invoice).unwrap();
    client.flush().unwrap();
    client.write(0, &[9; 4096]).unwrap();
    client.flush().unwrap();
    rig
}

/// Runs an example with the page's names replaced by those of the group.
fn run(rig: &Rig, command: &str) -> Finished {
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["towline", "journal", action, dir, options @ ..] = words.as_slice() else {
        panic!("an example of another program: {command}");
    };
    let dir = match *dir {
        "copy" => rig.path("copy"),
        _ => rig.state().join(&rig.group),
    };
    let head = rig_head(rig);
    let path = |name: &str| rig.path(name).to_string_lossy().into_owned();
    let word = |word: &&str| match *word {
        "root" => "disk0".to_owned(),
        // The invoice's record, and two later.
        "729" => (head - 3).to_string(),
        "731" => (head - 1).to_string(),
        word if word.ends_with(".img") || word.ends_with(".svg") => path(word),
        word => word.to_owned(),
    };
    let options: Vec<String> = options.iter().map(word).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    rig.towline(journal(&dir, action, &options))
}

fn rig_head(rig: &Rig) -> u64 {
    let dir = rig.state().join(&rig.group);
    if !dir.exists() {
        return 0;
    }
    let inspect = rig.towline(journal(&dir, "inspect", &["--json"]));
    inspect.json()["head_seq"].as_u64().unwrap()
}

/// The dead host's files; a byte of the third payload is damaged.
fn damaged_copy(rig: &Rig) {
    let copy = rig.path("copy");
    std::fs::create_dir(&copy).unwrap();
    let state = rig.state().join(&rig.group).join("state.json");
    std::fs::copy(state, copy.join("state.json")).unwrap();
    let ring = ring_of(rig);
    let mut bytes = std::fs::read(&ring).unwrap();
    let at = bytes.windows(4096).position(|window| window == [3; 4096]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(copy.join(ring.file_name().unwrap()), bytes).unwrap();
}

fn cut_short(copy: &Path) {
    for entry in std::fs::read_dir(copy).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "ring") {
            std::fs::OpenOptions::new()
                .write(true)
                .open(entry.path())
                .and_then(|file| file.set_len(5 << 20))
                .unwrap();
        }
    }
}

#[test]
fn every_line_of_the_manuals_examples_comes_out() {
    let rig = group();
    let examples = examples();
    assert!(examples.len() >= 9, "the page lost its examples");
    let mut last = 0;
    for example in &examples {
        if example.command == "echo $?" {
            assert_eq!(example.shown, [last.to_string()]);
            cut_short(&rig.path("copy"));
            continue;
        }
        if example.command.ends_with(" copy") && !rig.path("copy").exists() {
            damaged_copy(&rig);
        }
        let finished = run(&rig, &example.command);
        last = finished.code();
        let said = format!("{}\n{}", finished.stdout, finished.stderr);
        let base = rig.path("").to_string_lossy().into_owned();
        let said = said.replace(&base, "").replace(&rig.group, "web");
        let printed: Vec<String> = said.lines().map(form).collect();
        for line in &example.shown {
            let form = form(line);
            assert!(
                printed.contains(&form),
                "{}: no line like {line:?} ({form}) in\n{said}",
                example.command
            );
        }
    }
}
