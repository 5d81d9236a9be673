//! A new incarnation: its ring, its change map and its activity map, from what is known
//! of the target.

use super::*;
use std::io::Read;

/// What is known of the target's content when an incarnation begins.
pub(crate) enum Content<'a> {
    /// The target has nothing.
    New,
    /// The target may have anything.
    Unknown,
    /// All but these blocks is there; the activity map, if it is sound.
    Saved(&'a Saved, Option<&'a activity::Found>),
    /// All but what was active.
    Active(&'a activity::Found),
}

impl Content<'_> {
    /// Where a target must stand for this to be true of it.
    pub(crate) fn base(&self) -> Base {
        match self {
            Content::New | Content::Unknown => Base::default(),
            Content::Saved(saved, _) => Base {
                incarnation: saved.incarnation,
                seq: saved.acked_seq,
                claims: saved.acked_claims,
            },
            Content::Active(found) => found.base,
        }
    }

    /// The activity map to begin with. What is dirty in the change map is hot here, and
    /// so is what the history touches: if this ring is lost, too, before a target has
    /// passed the history, its records are given up and their extents compared.
    pub(crate) fn activity(&self, past: Option<&Past>) -> (Base, Hot) {
        match self {
            Content::New | Content::Unknown | Content::Saved(_, None) => {
                (Base::default(), Hot::All)
            }
            Content::Saved(saved, Some(found)) => {
                let mut hot = found.hot.clone();
                for (volume, words) in saved.words.iter().enumerate() {
                    for run in runs_of(words, words.len() as u64 * 64) {
                        heat(&mut hot, volume, run);
                    }
                }
                (self.base(), Hot::Words(hot))
            }
            Content::Active(found) => {
                let mut hot = found.hot.clone();
                for touched in past.iter().flat_map(|past| &past.touched) {
                    heat(&mut hot, touched.volume.index(), touched.range());
                }
                let base = past.map_or(found.base, |past| past.base_before(found.base));
                (base, Hot::Words(hot))
            }
        }
    }

    /// Sets a volume's bits of the new change map.
    pub(crate) fn mark(&self, volume: usize, map: VolumeMap<'_>) {
        let all = map.all();
        match self {
            Content::New => {
                map.set(Bits::Dirty, all);
            }
            Content::Unknown => {
                map.set(Bits::Suspect, all);
                map.set(Bits::Dirty, all);
            }
            Content::Saved(saved, _) => {
                let words = saved.words.get(volume).map_or(&[][..], Vec::as_slice);
                for run in runs_of(words, all.count) {
                    map.set(Bits::Dirty, run);
                }
            }
            Content::Active(found) => {
                let hot = Hot::Words(found.hot.clone());
                let blocks = EXTENT_BYTES / BLOCK_BYTES;
                for extent in (0..all.count.div_ceil(blocks)).filter(|e| hot.has(volume, *e)) {
                    let first = extent * blocks;
                    let run = BlockRange::new(first, blocks.min(all.count - first));
                    map.set(Bits::Suspect, run);
                    map.set(Bits::Dirty, run);
                }
            }
        }
    }
}

/// Marks the extents of a range of blocks.
fn heat(hot: &mut [Vec<u64>], volume: usize, blocks: BlockRange) {
    let Some(words) = hot.get_mut(volume) else { return };
    let per_extent = EXTENT_BYTES / BLOCK_BYTES;
    for extent in blocks.first / per_extent..blocks.end().div_ceil(per_extent) {
        if let Some(word) = words.get_mut((extent / 64) as usize) {
            *word |= 1 << (extent % 64);
        }
    }
}

fn is_ring(path: &Path) -> bool {
    let mut magic = [0; RING_MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == RING_MAGIC
}

/// Makes a ring for the next incarnation and names it in `state.json`; the change
/// map is everything, or what an orderly stop saved.
pub(crate) fn new_incarnation(
    dir: &GroupDir,
    options: &Options,
    old: Option<&GroupState>,
    content: &Content<'_>,
    past: Option<&Past>,
) -> Result<(Ring, File, GroupState, Cursor)> {
    let ring_id = Hex16::random();
    let name = format!("towline-{}-{}.ring", options.group, &ring_id.to_string()[..12]);
    let ring_path = options.ring_dir.join(name);
    let payload_bytes = options.ring_bytes.unwrap_or_else(|| default_ring_bytes(&options.ring_dir));
    if payload_bytes < RING_BYTES_MIN {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a ring of {payload_bytes} bytes is too small: {RING_BYTES_MIN} is the least"),
        ));
    }
    let mut volumes = Vec::new();
    for source in &options.sources {
        volumes.push(VolumeState {
            name: source.name.clone(),
            path: source.disk.path().to_owned(),
            size_bytes: source.disk.size_bytes(),
            identity: source.disk.identity()?,
            exports: Vec::new(),
        });
    }
    let state = GroupState {
        version: STATE_VERSION,
        group: options.group.clone(),
        group_uuid: old.map_or_else(Hex16::random, |old| old.group_uuid),
        epoch: old.map_or(1, |old| old.epoch),
        incarnation: old.map_or(1, |old| old.incarnation + 1),
        ring: RingPlace { path: ring_path.clone(), id: ring_id, boot_id: Hex16(boot_id()) },
        volumes,
        seal: old.and_then(|old| old.seal.clone()),
        stopped: None,
        history: past.map(|past| past.ring),
        spill: old.and_then(|old| old.spill.clone()),
    };
    let spec = RingSpec {
        group_name: options.group.to_string(),
        group_uuid: state.group_uuid.0,
        ring_id: ring_id.0,
        boot_id: boot_id(),
        epoch: state.epoch,
        incarnation: state.incarnation,
        base_incarnation: content.base().incarnation,
        base_seq: content.base().seq,
        base_claims: content.base().claims,
        payload_bytes,
        created_unix_ns: (options.clock)(),
        volumes: options
            .sources
            .iter()
            .map(|s| (s.name.to_string(), s.disk.size_bytes()))
            .collect(),
    };
    let (ring, file) = Ring::create(&ring_path, &spec)?;
    for index in 0..options.sources.len() {
        let map = VolumeMap::new(&ring, VolumeId(index as u16));
        content.mark(index, map);
    }
    let sizes: Vec<u64> = options.sources.iter().map(|s| s.disk.size_bytes()).collect();
    ring.set(Counter::NextClaim, 1);
    let nothing = Extent::new(0, 0);
    let mut slot = Slot::new(Kind::Control, VolumeId(0), nothing, spec.created_unix_ns);
    slot.control = (Control::Resync as u32).into();
    ring.publish(1, &mut slot, SlotState::Done);
    ring.set(Counter::Head, 1);
    ring.set(Counter::Done, 1);
    let (activity_base, hot) = content.activity(past);
    let stored = Activity::create(
        &dir.activity_path(),
        state.group_uuid.0,
        state.incarnation,
        activity_base,
        &sizes,
        &hot,
    )
    .and_then(|activity| Ok((activity.take_written_bytes(), dir.store(&state)?)));
    match stored {
        Ok((activity_bytes, state_bytes)) => {
            ring.set(Counter::ActivityWrittenBytes, activity_bytes);
            ring.set(Counter::StateWrittenBytes, state_bytes);
        }
        Err(error) => {
            durable::remove_ring(&ring_path);
            return Err(error);
        }
    }
    // Only now is the new ring the group's; the old one is garbage. What is no ring is not
    // ours to remove.
    if let Some(old) = old.filter(|old| is_ring(&old.ring.path)) {
        durable::remove_ring(&old.ring.path);
    }
    let cursor = Cursor {
        next_seq: 2,
        payload_head: 0,
        payload_tail: 0,
        freed_seq: 0,
        whole: false,
        wake_payload: u64::MAX,
        wake_seq: u64::MAX,
    };
    Ok((ring, file, state, cursor))
}
