//! The ring file: geometry, slots, payload area. Shared by appender and readers.

use crate::error::{Error, ErrorKind, Result};
use crate::format::*;
use crate::record::{Record, SlotFault};
use crate::sys::sync::{AtomicU64, Ordering, fence};
use crate::sys::{Mapping, Use, allocate};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use towline_block::{BLOCK_BYTES, BlockRange, VolumeId, crc32c};
use zerocopy::{FromBytes, IntoBytes};

/// Payload bytes asked for ahead of their copy. The lines wait for memory while the
/// checksum is computed; more than this would push out what is being summed.
const PREFETCH_BYTES_MAX: u64 = 8192;

/// What a ring is made from.
#[derive(Clone, Debug)]
pub struct RingSpec {
    pub group_name: String,
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    pub boot_id: [u8; 16],
    pub epoch: u32,
    pub incarnation: u32,
    pub base_incarnation: u32,
    pub base_seq: u64,
    pub base_claims: u64,
    pub payload_bytes: u64,
    pub created_unix_ns: u64,
    /// Name and size of each volume, in order.
    pub volumes: Vec<(String, u64)>,
}

pub(crate) struct Ring {
    map: Mapping,
    pub superblock: Superblock,
    pub volumes: Vec<VolumeEntry>,
    slots: u64,
    payload_bytes: u64,
    payload_offset: u64,
}

impl Ring {
    /// Creates the file at `path`, which must not exist, and maps it writable.
    pub fn create(path: &Path, spec: &RingSpec) -> Result<(Ring, File)> {
        let what = || format!("cannot create the ring {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| Error::io(what(), e))?;
        let (superblock, volumes) = layout(spec);
        let bytes = superblock.file_bytes.get();
        if let Err(error) = allocate(&file, bytes) {
            let _ = std::fs::remove_file(path);
            let hint = "choose a smaller ring (--ring) or make room in shared memory";
            return Err(Error::io(format!("{}: no room for {bytes} bytes; {hint}", what()), error));
        }
        let map = Mapping::new(&file, bytes, Use::Write)?;
        map.settle();
        for (index, entry) in volumes.iter().enumerate() {
            map.write(VOLUME_TABLE_OFFSET + index as u64 * VOLUME_ENTRY_BYTES, entry.as_bytes());
        }
        map.write(0, superblock.as_bytes());
        Ok((Ring::new(map, superblock, volumes), file))
    }

    /// Maps an existing ring and checks its superblock and volume table. Its owner maps it
    /// as fast as can be and calls [`Ring::settle`] when there is time.
    ///
    /// # Errors
    /// [`ErrorKind::Newer`] for a later version, [`ErrorKind::Damaged`] otherwise.
    pub fn open(file: &File, how: Use) -> Result<Ring> {
        let head = Mapping::new(file, SLOTS_OFFSET, Use::Look)?;
        let mut page = vec![0; SUPERBLOCK_BYTES as usize];
        head.read(0, &mut page);
        let superblock = check_superblock(&page)?;
        let count = superblock.volume_count.get() as usize;
        let mut volumes = Vec::with_capacity(count);
        for index in 0..count {
            let mut bytes = [0; VOLUME_ENTRY_BYTES as usize];
            head.read(VOLUME_TABLE_OFFSET + (index * bytes.len()) as u64, &mut bytes);
            volumes.push(check_volume(index, &bytes, &superblock)?);
        }
        let map = Mapping::new(file, superblock.file_bytes.get(), how)?;
        Ok(Ring::new(map, superblock, volumes))
    }

    fn new(map: Mapping, superblock: Superblock, volumes: Vec<VolumeEntry>) -> Ring {
        let slots = superblock.slots.get();
        let payload_bytes = superblock.payload_bytes.get();
        let payload_offset = superblock.payload_offset.get();
        Ring { map, superblock, volumes, slots, payload_bytes, payload_offset }
    }

    /// A small ring in the model's memory, twice: for the appender and for a reader.
    #[cfg(loom)]
    pub fn model(spec: &RingSpec, slots: u64, payload_bytes: u64) -> (Ring, Ring) {
        let (mut superblock, volumes) = layout(spec);
        (superblock.slots, superblock.payload_bytes) = (slots.into(), payload_bytes.into());
        let slot_lines = (0..slots).map(|slot| SLOTS_OFFSET + slot * SLOT_BYTES);
        let payload_lines = (0..payload_bytes / PAYLOAD_ALIGN)
            .map(|line| superblock.payload_offset.get() + line * PAYLOAD_ALIGN);
        let lines: Vec<u64> = slot_lines.clone().chain(payload_lines).collect();
        let maps =
            volumes.iter().flat_map(|v| [&v.dirty_offset, &v.claimed_offset, &v.suspect_offset]);
        let striped = [Counter::GuestWrittenBytes, Counter::JournaledBytes, Counter::MappedBytes];
        let stripes = (0..volumes.len() as u64)
            .flat_map(|stripe| striped.map(|counter| counter.striped_offset(stripe)))
            .flatten();
        // Up to the stripes; the last is the payload head's, beside the head.
        let counters =
            (0..48).map(|line| COUNTERS_OFFSET + line * 64).chain([Counter::PayloadHead.offset()]);
        let counters = counters.chain(stripes);
        let words: Vec<u64> = slot_lines.chain(maps.map(|at| at.get())).chain(counters).collect();
        let map = Mapping::model(&words, &lines);
        let reader = Ring::new(map.clone(), superblock.clone(), volumes.clone());
        (Ring::new(map, superblock, volumes), reader)
    }

    pub fn slots(&self) -> u64 {
        self.slots
    }

    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    pub fn incarnation(&self) -> u32 {
        self.superblock.incarnation.get()
    }

    pub fn counter(&self, counter: Counter) -> &AtomicU64 {
        self.map.word(counter.offset())
    }

    pub fn get(&self, counter: Counter) -> u64 {
        let value = self.counter(counter).load(Ordering::Acquire);
        (0..STRIPES)
            .map_while(|stripe| counter.striped_offset(stripe))
            .fold(value, |sum, at| sum.saturating_add(self.map.word(at).load(Ordering::Acquire)))
    }

    /// Raises a striped counter.
    pub fn count(&self, counter: Counter, volume: VolumeId, by: u64) {
        if let Some(at) = counter.striped_offset(u64::from(volume.0)) {
            self.map.word(at).fetch_add(by, Ordering::Relaxed);
        }
    }

    pub fn set(&self, counter: Counter, value: u64) {
        self.counter(counter).store(value, Ordering::Release);
    }

    /// Maps all pages and locks them in memory where the limits allow it: from then on no
    /// append waits for one.
    pub fn settle(&self) {
        self.map.settle();
    }

    fn slot_offset(&self, seq: u64) -> u64 {
        SLOTS_OFFSET + seq % self.slots * SLOT_BYTES
    }

    pub fn commit(&self, seq: u64) -> &AtomicU64 {
        self.map.word(self.slot_offset(seq))
    }

    /// Writes a record's header; visible with the commit word, stored last.
    pub fn publish(&self, seq: u64, slot: &mut Slot, state: SlotState) {
        slot.incarnation = self.superblock.incarnation;
        slot.header_crc = slot.checksum(seq).into();
        let at = self.slot_offset(seq);
        self.map.write(at + 8, &slot.as_bytes()[8..]);
        self.commit(seq).store(commit_word(seq, state), Ordering::Release);
    }

    /// Where the payload of record `seq` ends, by its slot alone, unchecked: the header's
    /// checksum is left to those who read the record.
    pub fn payload_end_unchecked(&self, seq: u64) -> Option<u64> {
        let mut bytes = [0; size_of::<Slot>()];
        self.map.read(self.slot_offset(seq) + 8, &mut bytes[8..]);
        let slot = Slot::read_from_bytes(&bytes).ok()?;
        let position = slot.payload_position.get();
        let len = u64::from(slot.len.get()).next_multiple_of(PAYLOAD_ALIGN);
        (position != NO_PAYLOAD).then(|| position.saturating_add(len))
    }

    /// Asks for the lines of a record that is about to be written.
    pub fn prefetch(&self, seq: u64, position: u64, len: u64) {
        self.map.prefetch(self.slot_offset(seq), 1);
        let at = self.payload_offset + position % self.payload_bytes;
        self.map.prefetch(at, len.min(PREFETCH_BYTES_MAX));
    }

    /// Reads and decodes record `seq`; re-checks that the slot was not reused
    /// while it was copied.
    pub fn record(&self, seq: u64) -> std::result::Result<Record, SlotFault> {
        self.slot(seq).map(|(record, _)| record)
    }

    /// As [`Ring::record`], with the slot's bytes.
    pub fn slot(&self, seq: u64) -> std::result::Result<(Record, Slot), SlotFault> {
        let before = self.commit(seq).load(Ordering::Acquire);
        let (found, state) = commit_parts(before);
        if found != seq || state == SlotState::Empty {
            return Err(SlotFault::OtherRecord { found });
        }
        let mut bytes = [0; SLOT_BYTES as usize];
        self.map.read(self.slot_offset(seq), &mut bytes);
        bytes[..8].copy_from_slice(&before.to_le_bytes());
        fence(Ordering::Acquire);
        let (after, _) = commit_parts(self.commit(seq).load(Ordering::Acquire));
        if after != seq {
            return Err(SlotFault::OtherRecord { found: after });
        }
        let slot = Slot::read_from_bytes(&bytes).expect("a slot is 64 bytes");
        let record = Record::decode(seq, &slot)?;
        self.check_bounds(&record)?;
        Ok((record, slot))
    }

    fn check_bounds(&self, record: &Record) -> std::result::Result<(), SlotFault> {
        if matches!(record.kind, Kind::Write | Kind::Zero | Kind::Trim) {
            let volume =
                self.volumes.get(record.volume.index()).ok_or(SlotFault::Field("volume"))?;
            if !record.extent.within(volume.size_bytes.get()) {
                return Err(SlotFault::Field("offset"));
            }
        }
        if let Some(position) = record.payload_position {
            let start = position % self.payload_bytes;
            let end = start.checked_add(record.extent.len);
            if record.extent.len > RECORD_PAYLOAD_BYTES_MAX
                || end.is_none_or(|end| end > self.payload_bytes)
            {
                return Err(SlotFault::Field("payload_position"));
            }
        }
        Ok(())
    }

    pub fn write_payload(&self, position: u64, bytes: &[u8]) {
        self.map.write(self.payload_offset + position % self.payload_bytes, bytes);
    }

    /// Copies the payload of a record out of the ring, unchecked.
    pub fn copy_payload(&self, record: &Record, into: &mut [u8]) {
        if let Some(position) = record.payload_position {
            self.map.read(self.payload_offset + position % self.payload_bytes, into);
        }
    }

    /// Copies the payload of a record out of the ring. `false` when what was copied
    /// does not match the record's checksum.
    pub fn read_payload(&self, record: &Record, into: &mut Vec<u8>) -> bool {
        let Some(position) = record.payload_position else { return true };
        let start = into.len();
        let at = self.payload_offset + position % self.payload_bytes;
        self.map.append_to(at, record.extent.len as usize, into);
        if crc32c(&into[start..]) == record.payload_crc {
            return true;
        }
        into.truncate(start);
        false
    }

    pub fn word(&self, offset: u64) -> &AtomicU64 {
        self.map.word(offset)
    }

    pub fn blocks(&self, volume: usize) -> u64 {
        BlockRange::of_volume(self.volumes[volume].size_bytes.get()).count
    }
}

/// Bytes of a ring file whose payload area has `payload_bytes`.
fn layout(spec: &RingSpec) -> (Superblock, Vec<VolumeEntry>) {
    assert!(spec.volumes.len() <= VOLUMES_MAX, "checked by the caller");
    let payload_bytes = spec.payload_bytes.next_multiple_of(PAGE_BYTES);
    let slots = (payload_bytes / PAYLOAD_BYTES_PER_SLOT).max(4 * CONTROL_SLOTS_RESERVED);
    let payload_offset = (SLOTS_OFFSET + slots * SLOT_BYTES).next_multiple_of(PAGE_BYTES);
    let maps_offset = payload_offset + payload_bytes;
    let mut at = maps_offset;
    let mut volumes = Vec::new();
    for (name, size_bytes) in &spec.volumes {
        let words = BlockRange::of_volume(*size_bytes).count.div_ceil(64);
        let map_bytes = (words * 8).next_multiple_of(PAGE_BYTES);
        let mut entry = VolumeEntry {
            size_bytes: (*size_bytes).into(),
            dirty_offset: at.into(),
            claimed_offset: (at + map_bytes).into(),
            suspect_offset: (at + 2 * map_bytes).into(),
            words: words.into(),
            name: name_field(name),
            reserved: [0; 20],
            crc: 0.into(),
        };
        entry.crc = entry.checksum().into();
        volumes.push(entry);
        at += 3 * map_bytes;
    }
    let mut superblock = Superblock {
        magic: RING_MAGIC,
        version: FORMAT_VERSION.into(),
        epoch: spec.epoch.into(),
        incarnation: spec.incarnation.into(),
        volume_count: (spec.volumes.len() as u32).into(),
        group_uuid: spec.group_uuid,
        ring_id: spec.ring_id,
        boot_id: spec.boot_id,
        slots: slots.into(),
        payload_bytes: payload_bytes.into(),
        slots_offset: SLOTS_OFFSET.into(),
        payload_offset: payload_offset.into(),
        maps_offset: maps_offset.into(),
        file_bytes: at.into(),
        block_bytes: (BLOCK_BYTES as u32).into(),
        base_incarnation: spec.base_incarnation.into(),
        base_seq: spec.base_seq.into(),
        base_claims: spec.base_claims.into(),
        created_unix_ns: spec.created_unix_ns.into(),
        group_name: name_field(&spec.group_name),
        reserved: [0; 3876],
        crc: 0.into(),
    };
    superblock.crc = superblock.checksum().into();
    (superblock, volumes)
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("the ring's {what}"))
}

fn check_superblock(page: &[u8]) -> Result<Superblock> {
    let block = Superblock::read_from_bytes(page).map_err(|_| damaged("first page is short"))?;
    if block.magic != RING_MAGIC {
        return Err(damaged("magic is not that of a Towline ring"));
    }
    if block.version.get() > FORMAT_VERSION {
        return Err(Error::new(
            ErrorKind::Newer,
            format!(
                "the ring has format version {}, this program knows {FORMAT_VERSION}: use the \
                 newer Towline that wrote it",
                block.version.get()
            ),
        ));
    }
    if block.checksum() != block.crc.get() {
        return Err(damaged("superblock fails its checksum"));
    }
    let (slots, payload) = (block.slots.get(), block.payload_bytes.get());
    let slots_end = slots.checked_mul(SLOT_BYTES).and_then(|b| b.checked_add(SLOTS_OFFSET));
    let payload_end = block.payload_offset.get().checked_add(payload);
    let sound = block.version.get() == FORMAT_VERSION
        && block.reserved.iter().all(|b| *b == 0)
        && block.slots_offset.get() == SLOTS_OFFSET
        && u64::from(block.block_bytes.get()) == BLOCK_BYTES
        && block.volume_count.get() as usize <= VOLUMES_MAX
        && slots >= 2 * CONTROL_SLOTS_RESERVED
        && payload >= RECORD_PAYLOAD_BYTES_MAX
        && slots_end.is_some_and(|end| end <= block.payload_offset.get())
        && payload_end.is_some_and(|end| end <= block.maps_offset.get())
        && block.maps_offset.get() <= block.file_bytes.get();
    if !sound {
        return Err(damaged("superblock contradicts itself"));
    }
    Ok(block)
}

fn check_volume(index: usize, bytes: &[u8], block: &Superblock) -> Result<VolumeEntry> {
    let entry =
        VolumeEntry::read_from_bytes(bytes).map_err(|_| damaged("volume table is short"))?;
    if entry.checksum() != entry.crc.get() {
        return Err(damaged(&format!("entry of volume {index} fails its checksum")));
    }
    let map_end =
        |offset: u64| entry.words.get().checked_mul(8).and_then(|bytes| bytes.checked_add(offset));
    let offsets = [&entry.dirty_offset, &entry.claimed_offset, &entry.suspect_offset];
    let sound = offsets.map(|offset| offset.get()).iter().all(|offset| {
        offset.is_multiple_of(8)
            && *offset >= block.maps_offset.get()
            && map_end(*offset).is_some_and(|end| end <= block.file_bytes.get())
    }) && entry.words.get()
        == BlockRange::of_volume(entry.size_bytes.get()).count.div_ceil(64);
    if !sound {
        return Err(damaged(&format!("entry of volume {index} contradicts itself")));
    }
    Ok(entry)
}
