//! Devices made by hand: every order in which they arrive, every loss. Where the target is
//! not said to lack a block it has what the source had.

use super::folder::Folder;
use super::import::import_on;
use super::manifest::{MANIFEST_VERSION, Manifest, Pack};
use super::pack::PackWriter;
use super::verify::{PackState, verify};
use super::*;
use crate::batch::{BatchBuilder, Chain, Encoder, Keyring};
use crate::error::ErrorKind;
use crate::ids::{BatchHash, Digest, GroupUuid, SessionId, SetId};
use crate::receiver::medium::Medium;
use crate::receiver::tests::disk::{Crash, Model, Recorder, lay_out};
use crate::receiver::tests::export::{Death, Exports, Offer};
use crate::receiver::{Layout, State, Stream};
use crate::wire::VolumeSize;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tempfile::TempDir;
use towline_block::{BLOCK_BYTES, Epoch, Extent, Incarnation, Position, Seq, VolumeId, crc32c};

mod export;
mod travel;

const BLOCK: usize = BLOCK_BYTES as usize;
/// In blocks; the second volume ends in a short one.
const SIZES: [usize; 2] = [12 * BLOCK, 3 * BLOCK + 512];
const PACKS: usize = 7;
const SEEDS: u64 = 24;

struct World {
    dir: TempDir,
    devices: Vec<PathBuf>,
    manifest: Manifest,
    /// The volumes where the export ended.
    model: Vec<Vec<u8>>,
}

/// Cuts random batches and keeps the model.
struct Source {
    rng: StdRng,
    chain: Chain,
    seq: u64,
    claims: u64,
    model: Vec<Vec<u8>>,
    encoder: Encoder,
}

impl Source {
    fn new(seed: u64) -> (Source, GroupUuid) {
        let (session, group) = (SessionId::random(), GroupUuid([5; 16]));
        let chain = Chain { group, session, number: 0, hash: BatchHash::NONE, stream_bytes: 0 };
        let source = Source {
            rng: StdRng::seed_from_u64(seed),
            chain,
            seq: 0,
            claims: 0,
            model: SIZES.iter().map(|size| vec![0; *size]).collect(),
            encoder: Encoder::default().telling_touches(),
        };
        (source, group)
    }

    fn range(&mut self) -> (usize, usize, usize) {
        let volume = self.rng.random_range(0..2);
        let size = SIZES[volume];
        let at = self.rng.random_range(0..size);
        let len = self.rng.random_range(1..=(size - at).min(2 * BLOCK));
        (volume, at, len)
    }

    /// Blocks of a claim, or a record or two.
    fn batch(&mut self) -> crate::batch::Sealed {
        let is_claim = self.rng.random_bool(0.5);
        let position = |seq| Position::new(Epoch(1), Incarnation(1), Seq(seq));
        let mut batch = match is_claim {
            true => {
                self.claims += 1;
                BatchBuilder::blocks(position(self.seq), self.claims, self.claims)
            }
            false => BatchBuilder::records(position(self.seq + 1), self.claims),
        };
        for _ in 0..self.rng.random_range(1..4) {
            let (volume, mut at, mut len) = self.range();
            let seq = match is_claim {
                true => {
                    at -= at % BLOCK;
                    len = BLOCK.min(SIZES[volume] - at);
                    Seq::NONE
                }
                false => {
                    self.seq += 1;
                    Seq(self.seq)
                }
            };
            let id = VolumeId(volume as u16);
            let mut content = vec![0; len];
            if self.rng.random_bool(0.3) {
                batch.zero(seq, id, Extent::new(at as u64, len as u64), false).unwrap();
            } else {
                self.rng.fill(&mut content[..]);
                batch.write(seq, id, at as u64, &content, crc32c(&content)).unwrap();
            }
            self.model[volume][at..at + len].copy_from_slice(&content);
        }
        let sealed = self.encoder.encode(batch, &self.chain, 0).unwrap();
        self.chain.advance(&sealed);
        sealed
    }
}

fn sizes() -> Vec<u64> {
    SIZES.iter().map(|size| *size as u64).collect()
}

impl World {
    fn new(seed: u64, devices: usize) -> World {
        // Memory, where there is any: it is fsynced often.
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        let devices: Vec<PathBuf> =
            (0..devices).map(|n| dir.path().join(format!("d{n}"))).collect();
        let (mut source, group_uuid) = Source::new(seed);
        let name = |n: usize| format!("disk{n}").parse().unwrap();
        let volume =
            |(n, size): (usize, &usize)| VolumeSize { name: name(n), size_bytes: *size as u64 };
        let mut manifest = Manifest {
            version: MANIFEST_VERSION,
            set: SetId::random(),
            group: "erp".parse().unwrap(),
            group_uuid,
            epoch: Epoch(1),
            volumes: SIZES.iter().enumerate().map(volume).collect(),
            key: None,
            pack_bytes: PACK_BYTES_MIN,
            begun_unix_ns: 0,
            finished: true,
            devices: devices.len() as u32,
            packs: Vec::new(),
        };
        let folders: Vec<Folder> =
            devices.iter().map(|device| Folder::of(device, &manifest.group)).collect();
        for (n, folder) in folders.iter().enumerate() {
            folder.identify(manifest.set, n as u32 + 1, &Medium::default()).unwrap();
        }
        for number in 1..=PACKS {
            let device = source.rng.random_range(0..devices.len());
            let before = manifest.after();
            let medium = Medium::default();
            let mut writer =
                PackWriter::create(&folders[device], number, before, &sizes(), u64::MAX, &medium)
                    .unwrap();
            for _ in 0..source.rng.random_range(1..4) {
                writer.push(&source.batch()).unwrap();
            }
            let (map, after) = writer.close(&folders[device], number).unwrap();
            let bytes = map.encode();
            folders.iter().for_each(|folder| std::fs::write(folder.map(number), &bytes).unwrap());
            let map = (Digest::of(&bytes), map.pack_bytes());
            let device = device as u32 + 1;
            manifest.packs.push(Pack { device, bytes: map.1, map: map.0, after });
        }
        let world = World { dir, devices, manifest, model: source.model };
        world.write_manifest();
        world
    }

    fn write_manifest(&self) {
        let bytes = self.manifest.encode(None).unwrap();
        for device in &self.devices {
            std::fs::write(Folder::of(device, &self.manifest.group).manifest(), &bytes).unwrap();
        }
    }

    /// What an import may write: a crash leaves any of it.
    fn there(&self) -> PathBuf {
        self.dir.path().join("there")
    }

    fn state_dir(&self) -> PathBuf {
        self.there().join("state")
    }

    fn target(&self, volume: usize) -> PathBuf {
        self.there().join(format!("target{volume}"))
    }

    fn layout(&self) -> Layout {
        Layout::of(&self.state_dir())
    }

    fn config(&self, devices: &[PathBuf]) -> ImportConfig {
        let targets = (0..2).map(|n| (self.manifest.volumes[n].name.clone(), self.target(n)));
        ImportConfig {
            devices: devices.to_vec(),
            group: None,
            trust: Trust::Unsigned,
            state_dir: self.state_dir(),
            targets: targets.collect(),
            keys: Keyring::default(),
            jobs: 2,
            without_missing: false,
        }
    }

    fn import(&self, devices: &[PathBuf]) -> crate::error::Result<Imported> {
        import(&self.config(devices), &AtomicU64::new(0))
    }

    fn set(&self) -> DeviceSet {
        DeviceSet::open(&self.devices, None, &Trust::Unsigned).unwrap()
    }

    /// Every block that is not lacking is the source's. Answers the lacking ones.
    fn assert_equal_but_lacking(&self, seed: u64) -> BTreeSet<(u16, u64)> {
        let text = std::fs::read(self.layout().lacking).unwrap_or(br#"{"runs":[]}"#.to_vec());
        let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let mut lacking = BTreeSet::new();
        for run in file["runs"].as_array().unwrap() {
            let run: BlockRun = serde_json::from_value(run.clone()).unwrap();
            lacking.extend((run.blocks.first..run.blocks.end()).map(|block| (run.volume.0, block)));
        }
        for (volume, model) in self.model.iter().enumerate() {
            let target = std::fs::read(self.target(volume)).unwrap();
            for (block, (theirs, ours)) in target.chunks(BLOCK).zip(model.chunks(BLOCK)).enumerate()
            {
                let is_lacking = lacking.contains(&(volume as u16, block as u64));
                assert!(is_lacking || theirs == ours, "seed {seed}: block {block} of {volume}");
            }
        }
        lacking
    }

    fn state(&self) -> State {
        let path = self.layout().state;
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn pack(&self, number: usize) -> PathBuf {
        let folder = |device: &PathBuf| Folder::of(device, &self.manifest.group).pack(number);
        self.devices.iter().map(folder).find(|path| path.exists()).unwrap()
    }
}

#[test]
fn all_devices_at_once_make_the_source_and_the_receiver_stands_at_the_end() {
    for seed in 0..SEEDS / 4 {
        let world = World::new(seed, 3);
        let imported = world.import(&world.devices).unwrap();
        assert_eq!((imported.done, imported.missing.len()), (PACKS, 0));
        assert_eq!(world.assert_equal_but_lacking(seed), BTreeSet::new());
        assert_eq!(world.state().applied, world.manifest.after());
        assert!(!world.layout().device.exists());
        let again = world.import(&world.devices).unwrap();
        assert!(again.already && again.missing.is_empty(), "{again:?}");
    }
}

#[test]
fn devices_in_any_order_lack_what_they_say_and_no_more() {
    for seed in 0..SEEDS {
        let world = World::new(seed, 3);
        let mut order: Vec<usize> = (0..3).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut stands = None;
        for device in order {
            if stands.is_none() {
                stands = world.import(&world.devices[device..=device]).unwrap().stands;
            }
        }
        let lacking = world.assert_equal_but_lacking(seed);
        let stands = stands.expect("all packs are there");
        assert_eq!(stands.lacking_bytes == Some(0), lacking.is_empty(), "seed {seed}");
        let applied = world.state().applied;
        assert_eq!(applied.number, world.manifest.after().number);
        assert!(!applied.whole && applied.point.is_none());
    }
}

#[test]
fn whatever_is_lost_damaged_or_comes_late_is_lacking_or_equal() {
    for seed in 0..SEEDS {
        let world = World::new(seed, 2);
        let mut rng = StdRng::seed_from_u64(seed);
        for number in 1..=PACKS {
            match rng.random_range(0..4) {
                0 => std::fs::remove_file(world.pack(number)).unwrap(),
                1 => {
                    let path = world.pack(number);
                    let mut bytes = std::fs::read(&path).unwrap();
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] ^= 1 << rng.random_range(0..8);
                    std::fs::write(&path, bytes).unwrap();
                }
                _ => {}
            }
        }
        let checked = verify(&world.set(), None, 2, &AtomicU64::new(0));
        let whole = checked.packs.iter().filter(|pack| **pack == PackState::Whole).count();
        let late = rng.random_range(0..2);
        let first = world.import(&world.devices[late..=late]).unwrap();
        assert!(first.damaged.iter().all(|(n, _)| checked.packs[n - 1] != PackState::Whole));
        let config = ImportConfig { without_missing: true, ..world.config(&world.devices) };
        let last = import(&config, &AtomicU64::new(0)).unwrap();
        let stands = last.stands.expect("nothing more is waited for");
        assert_eq!(last.done, whole, "seed {seed}: {:?}", checked.packs);
        let lacking = world.assert_equal_but_lacking(seed);
        if late == 0 && world.devices.len() == 1 {
            assert_eq!(stands.lacking_bytes, checked.lacking.map(|lacking| lacking.bytes()));
        }
        let needs_more = whole < PACKS && lacking.is_empty();
        assert!(!needs_more || stands.after == world.manifest.after(), "seed {seed}");
    }
}

#[test]
fn a_pack_that_comes_again_behind_later_ones_leaves_theirs_alone() {
    let world = World::new(1, 1);
    let layout = world.layout();
    let hidden: Vec<PathBuf> = (4..=PACKS).map(|number| world.pack(number)).collect();
    hidden.iter().for_each(|path| std::fs::rename(path, path.with_extension("x")).unwrap());
    let part = world.import(&world.devices).unwrap();
    assert_eq!((part.done, part.stands.is_some()), (3, false));
    let text = std::fs::read_to_string(&layout.device).unwrap();
    std::fs::write(&layout.device, text.replacen("\"done\":true", "\"done\":false", 1)).unwrap();
    hidden.iter().for_each(|path| std::fs::rename(path.with_extension("x"), path).unwrap());
    let whole = world.import(&world.devices).unwrap();
    assert_eq!(whole.done, PACKS);
    // Pack 1 came again behind 2 and 3: what these touched was left alone.
    world.assert_equal_but_lacking(1);
}

#[test]
fn manifests_that_contradict_themselves_or_each_other_are_refused() {
    let world = World::new(2, 2);
    let decode = |change: fn(&mut Manifest)| {
        let mut manifest = world.manifest.clone();
        change(&mut manifest);
        Manifest::decode(&manifest.encode(None).unwrap(), &Trust::Unsigned)
    };
    assert!(decode(|_| {}).is_ok());
    assert_eq!(decode(|m| m.version = 2).unwrap_err().kind(), ErrorKind::TooNew);
    for (what, change) in [
        ("volumes", (|m| m.volumes.clear()) as fn(&mut Manifest)),
        ("size", |m| m.volumes[0].size_bytes = u64::MAX),
        ("twice", |m| m.volumes[1] = m.volumes[0].clone()),
        ("device", |m| m.packs[0].device = 9),
        ("bytes", |m| m.packs[1].bytes += 1),
        ("order", |m| m.packs.swap(1, 2)),
        ("epoch", |m| m.packs[2].after.position.epoch = Epoch(7)),
        ("pack size", |m| m.pack_bytes = 0),
    ] {
        assert_eq!(decode(change).unwrap_err().kind(), ErrorKind::Damaged, "{what}");
    }
    let mut other = world.manifest.clone();
    other.packs[0].map = Digest([1; 32]);
    let second = Folder::of(&world.devices[1], &other.group).manifest();
    std::fs::write(&second, other.encode(None).unwrap()).unwrap();
    let error = world.import(&world.devices).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    other.set = SetId([1; 16]);
    std::fs::write(&second, other.encode(None).unwrap()).unwrap();
    let error = world.import(&world.devices).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(!world.layout().device.exists());
}

#[test]
fn a_shorter_manifest_is_the_beginning_of_a_longer_one() {
    let world = World::new(3, 2);
    let mut short = world.manifest.clone();
    (short.finished, short.packs) = (false, short.packs[..3].to_vec());
    let first = Folder::of(&world.devices[0], &short.group).manifest();
    std::fs::write(&first, short.encode(None).unwrap()).unwrap();
    assert_eq!(world.set().manifest, world.manifest);
    // Alone it is an export that ended there: the source is further, and sends everything
    // that it knows of since.
    let one = DeviceSet::open(&world.devices[..1], None, &Trust::Unsigned).unwrap();
    assert_eq!(one.manifest, short);
}

#[test]
fn what_stands_is_a_receiver_that_goes_on_there() {
    let world = World::new(4, 1);
    world.import(&world.devices).unwrap();
    let recovered = crate::receiver::recover(&world.state_dir(), &Keyring::default());
    let stream: Stream = recovered.unwrap().unwrap();
    assert_eq!(stream, world.manifest.after());
}

/// A crash at every third step of an import, by which everything or nothing of what was not
/// synced is lost: the same call goes on, and the receiver stands as if nothing had happened.
fn crashes_everywhere(seed: u64, lost: Option<usize>) {
    let world = World::new(seed, 1);
    if let Some(number) = lost {
        std::fs::remove_file(world.pack(number)).unwrap();
    }
    let mut model = Model::default();
    for (volume, size) in SIZES.iter().enumerate() {
        std::fs::write(world.target(volume), vec![0; *size]).unwrap();
        model.put(&world.target(volume), vec![0; *size]);
    }
    let config = ImportConfig { without_missing: true, jobs: 1, ..world.config(&world.devices) };
    let recorder = Arc::new(Recorder::default());
    let medium = Medium::observed(recorder.clone());
    import_on(&config, &AtomicU64::new(0), &medium).unwrap();
    let undisturbed = (world.assert_equal_but_lacking(seed), world.state());
    assert_eq!(undisturbed.0.is_empty(), lost.is_none(), "the seed's pack {lost:?} is not missed");
    let changes = recorder.take();
    assert!(changes.len() > 50, "{} changes", changes.len());
    for (step, change) in changes.iter().enumerate() {
        for crash in [Crash::Kill, Crash::Torn, Crash::Power, Crash::PowerMixed(step as u64)] {
            if step % 3 != 0 {
                continue;
            }
            lay_out(&world.there(), &model.after(crash, Some(change)));
            let again = import(&config, &AtomicU64::new(0));
            let at =
                format!("seed {seed}, step {step} of {}, {crash:?}: {change:?}", changes.len());
            let again = again.unwrap_or_else(|error| panic!("{at}: {error}"));
            assert!(again.stands.is_some(), "{at}");
            let lacking = world.assert_equal_but_lacking(seed);
            assert_eq!((lacking, world.state()), undisturbed, "{at}");
        }
        model.make(change);
    }
}

#[test]
fn an_import_goes_on_after_a_crash_at_any_step() {
    crashes_everywhere(1, None);
}

#[test]
fn an_import_without_a_lost_pack_goes_on_after_a_crash_at_any_step() {
    crashes_everywhere(1, Some(PACKS));
}

#[test]
fn a_manifest_with_any_changed_byte_is_refused_or_sound() {
    let world = World::new(5, 1);
    let bytes = world.manifest.encode(None).unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        if let Ok(manifest) = Manifest::decode(&changed, &Trust::Unsigned) {
            let sizes = manifest.sizes();
            assert!(sizes.iter().all(|size| *size > 0) && sizes.iter().sum::<u64>() <= 256 << 40);
        }
    }
}

/// Imports to exports of a server that dies so, and is back at once. Answers its requests.
fn import_to_server(death: Option<(Death, u64)>) -> u64 {
    let world = World::new(11, 2);
    let exports = Exports::serve(world.dir.path(), &sizes(), Offer::default());
    if let Some((death, die)) = death {
        exports.dies(death, die);
    }
    let uri = |index: usize| PathBuf::from(exports.uri(index).to_string());
    let mut config = world.config(&world.devices);
    for (index, (_, path)) in config.targets.iter_mut().enumerate() {
        *path = uri(index);
    }
    let imported = import(&config, &AtomicU64::new(0)).unwrap();
    assert_eq!(imported.done, PACKS, "{death:?}");
    assert_eq!(imported.stands.unwrap().lacking_bytes, Some(0), "{death:?}");
    assert_eq!(exports.deaths_left(), 0, "{death:?} came");
    for (index, model) in world.model.iter().enumerate() {
        assert!(exports.durable(index) == *model, "{death:?}: disk {index}");
        assert_eq!(world.state().volumes[index].path, uri(index));
    }
    exports.requests()
}

#[test]
fn packs_go_to_exports_of_a_server_that_dies_between_any_two_requests() {
    let count = import_to_server(None);
    assert!(count > 30, "{count} requests");
    for number in 0..count {
        let deaths = [Death::Before(number), Death::After(number)];
        import_to_server(Some((deaths[number as usize % 2], number + 3)));
    }
}
