//! A volume rebuilt up to a record is what the source was at that record.

use super::{journal, ring_of, trim, zero};
use crate::DISK_BYTES;
use std::path::{Path, PathBuf};
use towline_tests::rig::Process;
use towline_tests::{Finished, Rig};

/// A drained group without a shipper, and an image of its volume as it is now.
fn with_base() -> (Rig, PathBuf) {
    let mut rig = Rig::new(2, DISK_BYTES);
    rig.start_all();
    let mut client = rig.client("disk0");
    for n in 0..8u8 {
        client.write(u64::from(n) * 300_000, &[n + 100; 9000]).unwrap();
    }
    client.flush().unwrap();
    rig.wait_drained();
    rig.kill(Process::Ship);
    let base = rig.path("base.img");
    std::fs::copy(rig.source("disk0"), &base).unwrap();
    (rig, base)
}

fn head(rig: &Rig) -> u64 {
    rig.status().head_seq()
}

fn extract(rig: &Rig, to: u64, base: &Path, out: &Path, more: &[&str]) -> Finished {
    let (to, base, out) = (to.to_string(), base.to_string_lossy(), out.to_string_lossy());
    let mut options =
        vec!["--to-seq", &to, "--volume", "disk0", "--base", &base, "--out", &out, "--json"];
    options.extend(more);
    rig.towline(journal(&rig.state().join(&rig.group), "extract", &options))
}

#[test]
fn the_result_is_the_source_as_it_was_at_each_record() {
    let (mut rig, base) = with_base();
    let before = std::fs::read(&base).unwrap();
    let mut moments = vec![(head(&rig), before.clone())];
    for round in 0..6u8 {
        let at = u64::from(round) * 250_000;
        rig.client("disk0").write(at, &vec![round + 1; 70_001]).unwrap();
        rig.client("disk1").write(at, &[0xdd; 5000]).unwrap();
        if round == 2 {
            zero(&mut rig.client("disk0"), 123_000, 200_000);
        }
        if round == 3 {
            trim(&mut rig.client("disk0"), 1 << 20, 1 << 20);
        }
        if round == 4 {
            // More than one record holds.
            rig.client("disk0").write(4 << 20, &vec![0x5a; (2 << 20) + 512]).unwrap();
        }
        rig.client("disk0").flush().unwrap();
        moments.push((head(&rig), std::fs::read(rig.source("disk0")).unwrap()));
    }
    // Live, then dead.
    for round in 0..2 {
        for (index, (seq, content)) in moments.iter().enumerate() {
            let out = rig.path(&format!("out-{round}-{index}.img"));
            let report = extract(&rig, *seq, &base, &out, &[]).exits(0).json();
            assert_eq!(report["outcome"], "written", "{report}");
            assert!(std::fs::read(&out).unwrap() == *content, "moment {index}: {report}");
        }
        if round == 0 {
            rig.kill(Process::Proxy);
        }
    }
    assert!(std::fs::read(&base).unwrap() == before, "the base was written");
    // A base that has some of the records already is as good.
    let (late, out) = (rig.path("late.img"), rig.path("from-late.img"));
    std::fs::write(&late, &moments[3].1).unwrap();
    extract(&rig, moments[5].0, &late, &out, &[]).exits(0);
    assert!(std::fs::read(&out).unwrap() == moments[5].1);
}

#[test]
fn missing_records_are_named_and_nothing_is_written() {
    let (mut rig, base) = with_base();
    for n in 1..=5u8 {
        rig.client("disk0").write(u64::from(n) * 8192, &[n; 4096]).unwrap();
    }
    let (head, out) = (head(&rig), rig.path("out.img"));
    let refused = |to: u64, more: &[&str]| {
        let finished = extract(&rig, to, &base, &out, more).exits(1);
        let report = finished.json();
        assert_eq!(report["outcome"], "refused", "{report}");
        assert!(finished.stderr.contains("nothing was written"), "{finished}");
        assert!(!out.exists(), "{finished}");
        report["missing"][0]["seq"].as_u64()
    };
    assert_eq!(refused(head + 7, &[]), Some(head + 7));
    // Before record 2, the HEAL, changes went past the journal.
    assert_eq!(refused(head, &["--from-seq", "1"]), Some(1));
    rig.kill(Process::Proxy);
    let ring = ring_of(&rig);
    let mut bytes = std::fs::read(&ring).unwrap();
    let at = bytes.windows(4096).position(|window| window.iter().all(|b| *b == 3)).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&ring, &bytes).unwrap();
    let refused = |to: u64| {
        let report = extract(&rig, to, &base, &out, &[]).json();
        report["missing"][0]["seq"].as_u64()
    };
    assert_eq!(refused(head), Some(head - 2));
    assert_eq!(refused(head - 3), None);
    assert!(out.exists());
}

#[test]
fn neither_source_nor_base_nor_any_file_is_ever_written() {
    let (rig, base) = with_base();
    rig.client("disk0").write(0, &[1; 4096]).unwrap();
    let seq = head(&rig);
    let image = std::fs::read(&base).unwrap();
    for out in [base.clone(), rig.source("disk0"), rig.target("disk0")] {
        extract(&rig, seq, &base, &out, &[]).exits(1);
    }
    assert!(std::fs::read(&base).unwrap() == image);
    // As a base, the source has what comes later.
    let said = extract(&rig, seq, &rig.source("disk0"), &rig.path("o"), &[]).exits(1).stderr;
    assert!(said.contains("source itself"), "{said}");
    std::fs::write(rig.path("short"), &image[..4096]).unwrap();
    let said = extract(&rig, seq, &rig.path("short"), &rig.path("o"), &[]).exits(1).stderr;
    assert!(said.contains("4096 bytes"), "{said}");
    assert!(!rig.path("o").exists());
    extract(&rig, 1, &base, &rig.path("o"), &[]).exits(64);
}
