//! The manual page names every key of every `--json` object, and no other.

use super::{journal, with_records};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use towline_tests::rig::Process;

const MANUAL: &str = include_str!("../../../docs/man/towline-journal.md");

/// The keys that the page's table names, by command.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let (_, section) = MANUAL.split_once("\n## JSON\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut keys = BTreeMap::<String, BTreeSet<String>>::new();
    let mut commands = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let first = line[2..].split(" |").next().unwrap();
        if !first.contains('`') {
            commands = match first {
                "all commands" => {
                    ["inspect", "dump", "tail", "verify", "stat", "map", "extract"].to_vec()
                }
                names => names.split(", ").collect(),
            };
            continue;
        }
        let named = first.split('`').skip(1).step_by(2);
        for (command, key) in commands.iter().flat_map(|c| named.clone().map(move |key| (c, key))) {
            keys.entry((*command).to_owned()).or_default().insert(key.to_owned());
        }
    }
    keys
}

/// All keys of an object, those of objects inside it with its own before them.
fn keys_of(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let separator = if prefix.is_empty() { "" } else { "." };
                keys_of(inner, &format!("{prefix}{separator}{key}"), found);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().for_each(|inner| keys_of(inner, &format!("{prefix}[]"), found));
        }
        Value::Array(_) if prefix.ends_with("picture") => {
            found.insert(format!("{prefix}[]"));
        }
        _ => {
            found.insert(prefix.to_owned());
        }
    }
}

#[test]
fn the_manual_names_every_key_of_every_object() {
    let mut rig = with_records();
    let dir = rig.state().join(&rig.group);
    let base = rig.path("base.img");
    std::fs::copy(rig.source("disk0"), &base).unwrap();
    rig.kill(Process::Proxy);
    let (base, out) = (base.to_string_lossy().into_owned(), rig.path("out.img"));
    let out = out.to_string_lossy().into_owned();
    let damaged = super::damaged_ring(&rig);
    let extract = ["--volume", "disk0", "--base", &base, "--out", &out, "--to-seq", "900000"];
    let mut documented = documented();
    for (command, options) in [
        ("inspect", &[][..]),
        ("dump", &["--hexdump=4"]),
        ("tail", &["--hexdump=4"]),
        ("verify", &["--ring", &damaged]),
        ("stat", &[]),
        ("map", &[]),
        ("extract", &extract),
    ] {
        let mut all = options.to_vec();
        all.push("--json");
        let object = rig.towline(journal(&dir, command, &all)).json();
        let mut found = BTreeSet::new();
        keys_of(&object, "", &mut found);
        if command == "inspect" {
            found.retain(|key| !key.starts_with("mix."));
            found.insert("mix".to_owned());
        }
        let mut named = documented.remove(command).unwrap();
        // Of special records, and of the other command of a heading.
        let optional: &[&str] = match command {
            "inspect" => &["history.controls[].attempt"],
            "dump" => &["lost", "dropped"],
            "tail" => &["more"],
            _ => &[],
        };
        named.retain(|key| found.contains(key) || !optional.contains(&key.as_str()));
        assert_eq!(found, named, "{command}: {object}");
    }
    assert!(documented.is_empty(), "{documented:?}");
}
