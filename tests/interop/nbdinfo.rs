//! libnbd's nbdinfo: what the proxy says of itself.

use crate::{DISK_BYTES, served, uri};
use serde_json::Value;
use towline_tests::{PATIENCE, Rig, require, run};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON ({e}): {text}"))
}

#[test]
fn the_export_is_described_with_all_it_can() {
    require!("nbdinfo");
    let rig = served();
    let info = parse(&run("nbdinfo", ["--json", &uri(&rig)], PATIENCE).ok());
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    assert_eq!(export["export-size"], DISK_BYTES, "{info}");
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can}: {info}");
    }
    assert_eq!(export["is_read_only"], false, "{info}");
    assert_eq!(info["structured"], true, "{info}");
}

#[test]
fn all_volumes_are_listed_and_the_first_is_also_the_default_export() {
    require!("nbdinfo");
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_proxy();
    let socket = rig.path("proxy.nbd");
    let list_uri = format!("nbd+unix:///?socket={}", socket.display());
    let list = parse(&run("nbdinfo", ["--list", "--json", &list_uri], PATIENCE).ok());
    let names: Vec<&str> = list["exports"]
        .as_array()
        .map(|exports| exports.iter().filter_map(|e| e["export-name"].as_str()).collect())
        .unwrap_or_default();
    assert!(names.contains(&"disk0") && names.contains(&"disk1"), "{list}");
    let default = parse(&run("nbdinfo", ["--json", &list_uri], PATIENCE).ok());
    assert_eq!(default["exports"][0]["export-size"], DISK_BYTES);
}

#[test]
fn the_map_is_shown_and_covers_the_disk() {
    require!("nbdinfo");
    let rig = served();
    let map = parse(&run("nbdinfo", ["--map", "--json", &uri(&rig)], PATIENCE).ok());
    let extents = map.as_array().cloned().unwrap_or_default();
    let covered: u64 = extents.iter().filter_map(|extent| extent["length"].as_u64()).sum();
    assert_eq!(covered, DISK_BYTES, "{map}");
}

#[test]
fn an_unknown_export_is_refused_with_its_name() {
    require!("nbdinfo");
    let rig = served();
    let uri = rig.source_uri("nosuch").to_string();
    let finished = run("nbdinfo", [&uri], PATIENCE);
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("nosuch"), "{finished}");
}
