//! A ring file of arbitrary content, looked at as `towline status` and `towline
//! journal` do.

use super::seal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use towline_block::BLOCK_BYTES;
use towline_journal::GroupDir;
use towline_journal::format::*;
use towline_journal::inspect::GroupView;
use zerocopy::IntoBytes;

const SLOTS: u64 = 32;
const PAYLOAD_OFFSET: u64 = (SLOTS_OFFSET + SLOTS * SLOT_BYTES).next_multiple_of(PAGE_BYTES);
const MAPS_OFFSET: u64 = PAYLOAD_OFFSET + RECORD_PAYLOAD_BYTES_MAX;
const FILE_BYTES: u64 = MAPS_OFFSET + 3 * PAGE_BYTES;
pub const RING_ID: &str = "02020202020202020202020202020202";
/// Where the patches may fall: everything up to the first payloads.
const HEAD_BYTES: usize = PAYLOAD_OFFSET as usize + 1024;

/// The first byte's lowest bit asks for right checksums, the next for a file that is
/// the input and nothing else. Otherwise patches of a sound ring: offset (3 bytes),
/// length, bytes.
pub fn ring_open(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let content = if mode & 2 == 2 { data.to_vec() } else { patched(data, mode & 1 == 1) };
    let dir = memory();
    let ring = dir.path().join("ring");
    let file = File::create(&ring).expect("a file");
    file.write_all_at(&content, 0).expect("room");
    if mode & 2 == 0 {
        file.set_len(FILE_BYTES).expect("room");
    }
    let state = format!(
        r#"{{"version":1,"group":"g","group_uuid":"{RING_ID}","epoch":1,"incarnation":1,
            "ring":{{"path":{ring:?},"id":"{RING_ID}","boot_id":"{RING_ID}"}},"volumes":[],"seal":null,"stopped":null}}"#
    );
    std::fs::create_dir(dir.path().join("g")).expect("a folder");
    std::fs::write(dir.path().join("g/state.json"), state).expect("room");
    look(&GroupDir::of(dir.path(), &"g".parse().expect("a name")));
}

/// A folder of its own in memory, where there is such a place.
pub fn memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a directory")
}

fn look(dir: &GroupDir) {
    let view = GroupView::open(dir).expect("the state is sound");
    assert_eq!(view.has_ring(), view.ring_error.is_none());
    let _ = (view.ring_used_bytes(), view.proxy_runs(), view.shipper_runs());
    let verified = view.verify();
    assert!(verified.records <= SLOTS.max(verified.records.min(1 << 20)));
    for range in [view.pending(), view.present()] {
        for seq in range {
            if let Some(record) = view.record(seq) {
                assert_eq!(record.seq, seq);
                let payload = view.payload(&record);
                assert!(payload.is_none_or(|p| p.len() as u64 <= RECORD_PAYLOAD_BYTES_MAX));
            }
        }
    }
}

/// A sound ring with one volume and one control record, patched.
fn patched(mut patches: &[u8], repair: bool) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    bytes[..PAGE_BYTES as usize].copy_from_slice(superblock().as_bytes());
    let table = VOLUME_TABLE_OFFSET as usize..(VOLUME_TABLE_OFFSET + VOLUME_ENTRY_BYTES) as usize;
    bytes[table.clone()].copy_from_slice(volume().as_bytes());
    let first = (SLOTS_OFFSET + SLOT_BYTES) as usize;
    let mut slot = Slot::new(Kind::Control, towline_block::VolumeId(0), none(), 1);
    slot.control = (Control::Resync as u32).into();
    slot.incarnation = 1.into();
    slot.commit = commit_word(1, SlotState::Done).into();
    bytes[first..first + SLOT_BYTES as usize].copy_from_slice(slot.as_bytes());
    for counter in [Counter::Head, Counter::Done] {
        bytes[counter.offset() as usize] = 1;
    }
    while let Some(([a, b, c, len], rest)) = patches.split_first_chunk() {
        let at = u32::from_le_bytes([*a, *b, *c, 0]) as usize % HEAD_BYTES;
        let (patch, after) = rest.split_at((*len as usize).min(rest.len()));
        let end = (at + patch.len()).min(HEAD_BYTES);
        bytes[at..end].copy_from_slice(&patch[..end - at]);
        patches = after;
    }
    if repair {
        seal::superblock(&mut bytes);
        seal::volume(&mut bytes[table]);
        let slots = SLOTS_OFFSET as usize..(SLOTS_OFFSET + SLOTS * SLOT_BYTES) as usize;
        bytes[slots].chunks_exact_mut(SLOT_BYTES as usize).for_each(seal::slot);
    } else {
        seal::slot(&mut bytes[first..first + SLOT_BYTES as usize]);
    }
    bytes
}

fn none() -> towline_block::Extent {
    towline_block::Extent::new(0, 0)
}

fn superblock() -> Superblock {
    let mut block = Superblock {
        magic: RING_MAGIC,
        version: FORMAT_VERSION.into(),
        epoch: 1.into(),
        incarnation: 1.into(),
        volume_count: 1.into(),
        group_uuid: [2; 16],
        ring_id: [2; 16],
        boot_id: [0; 16],
        slots: SLOTS.into(),
        payload_bytes: RECORD_PAYLOAD_BYTES_MAX.into(),
        slots_offset: SLOTS_OFFSET.into(),
        payload_offset: PAYLOAD_OFFSET.into(),
        maps_offset: MAPS_OFFSET.into(),
        file_bytes: FILE_BYTES.into(),
        block_bytes: (BLOCK_BYTES as u32).into(),
        base_incarnation: 0.into(),
        base_seq: 0.into(),
        base_claims: 0.into(),
        created_unix_ns: 1.into(),
        group_name: name_field("g"),
        reserved: [0; 3876],
        crc: 0.into(),
    };
    block.crc = block.checksum().into();
    block
}

fn volume() -> VolumeEntry {
    let mut entry = VolumeEntry {
        size_bytes: (64 * BLOCK_BYTES).into(),
        dirty_offset: MAPS_OFFSET.into(),
        claimed_offset: (MAPS_OFFSET + PAGE_BYTES).into(),
        suspect_offset: (MAPS_OFFSET + 2 * PAGE_BYTES).into(),
        words: 1.into(),
        name: name_field("v"),
        reserved: [0; 20],
        crc: 0.into(),
    };
    entry.crc = entry.checksum().into();
    entry
}
