//! A segment of the spill of arbitrary content, beside a ring that is lost: as a dead
//! host's files are looked at.

use super::ring::{RING_ID, memory};
use super::seal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use towline_journal::GroupDir;
use towline_journal::format::RECORD_PAYLOAD_BYTES_MAX;
use towline_journal::inspect::GroupView;
use towline_journal::spill::layout::SPAN_ALIGN;

/// Of the state's one volume.
const VOLUME_BYTES: u64 = 1 << 20;

/// The first byte's lowest bit asks for right checksums. The rest is the segment.
pub fn spill_segment(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if mode & 1 == 1 {
        seal::spans(&mut bytes);
    }
    let dir = memory();
    let state = format!(
        r#"{{"version":1,"group":"g","group_uuid":"{RING_ID}","epoch":1,"incarnation":1,
            "ring":{{"path":"/nowhere/ring","id":"{RING_ID}","boot_id":"{RING_ID}"}},
            "volumes":[{{"name":"v","path":"/v","size_bytes":{VOLUME_BYTES},"identity":
            {{"kind":"file","device":1,"inode":2,"size_bytes":{VOLUME_BYTES}}},"exports":[]}}],
            "seal":null,"stopped":null}}"#
    );
    let group = dir.path().join("g");
    std::fs::create_dir_all(group.join("spill")).expect("a folder");
    std::fs::write(group.join("state.json"), state).expect("room");
    let file = File::create(group.join("spill/00000.seg")).expect("a file");
    file.write_all_at(&bytes, 0).expect("room");
    file.set_len((bytes.len() as u64).next_multiple_of(SPAN_ALIGN)).expect("room");
    let mut view = GroupView::open(&GroupDir::of(dir.path(), &"g".parse().expect("a name")))
        .expect("the state is sound");
    view.look_into_spill();
    let verified = view.verify();
    let slots = bytes.len() as u64 / 64 + 1;
    assert!(verified.records <= slots, "more records than there is room for");
    let sound = view.pending().filter(|seq| look(&view, *seq)).count() as u64;
    assert!(sound >= verified.records, "verify believes what cannot be read");
    let _ = (view.stat(view.present(), 3), view.mix(view.pending()));
}

/// Whether the record can be read; what is handed out lies inside its volume.
fn look(view: &GroupView, seq: u64) -> bool {
    let Some(record) = view.record(seq) else { return false };
    assert_eq!(record.seq, seq);
    assert!(record.blocks().count == 0 || record.extent.within(VOLUME_BYTES), "{record:?}");
    let payload = view.payload(&record);
    assert!(payload.is_none_or(|bytes| bytes.len() as u64 <= RECORD_PAYLOAD_BYTES_MAX));
    true
}
