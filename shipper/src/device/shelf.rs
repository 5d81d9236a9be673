//! The exporting side's devices together: which export they carry, which of them are there,
//! where the next pack goes. A copy of manifest and maps lies in the state directory, so
//! that devices may be away.

use super::export::{ExportPlan, FolderView};
use super::folder::{self, Folder};
use super::manifest::{
    DEVICES_MAX, MANIFEST_BYTES_MAX, MANIFEST_VERSION, Manifest, PACKS_MAX, Pack,
};
use super::map::PackMap;
use super::pack::PackWriter;
use super::places::Places;
use super::room::{self, KEPT_BYTES, Lack, Room};
use super::sign::{ManifestSigner, Trust};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Digest, GroupUuid, KeyId, SetId};
use crate::receiver::Stream;
use crate::receiver::medium::Medium;
use crate::wire::VolumeSize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use towline_block::size::format_size;
use towline_block::{Epoch, GroupName};
use towline_journal::GroupDir;
use towline_journal::state::GroupState;

/// The group's copy in its state directory.
pub(crate) fn local(dir: &GroupDir) -> Folder {
    Folder::at(dir.path().join("device"))
}

/// A manifest of our own making.
pub(super) fn load(folder: &Folder) -> Result<Option<Manifest>> {
    let path = folder.manifest();
    let Some(bytes) = folder::read(&path, MANIFEST_BYTES_MAX)? else { return Ok(None) };
    let manifest = Manifest::decode(&bytes, &Trust::Unsigned);
    let manifest = manifest
        .map_err(|e| Error::caused(e.kind(), format!("{} is not usable", path.display()), e))?;
    Ok(Some(manifest))
}

/// A device in use.
struct Slot {
    /// As it was given.
    dir: PathBuf,
    folder: Folder,
    device: u32,
    /// Packs of which the map is known to lie there.
    maps: usize,
    /// It had the manifest when it was last brought up to date.
    is_current: bool,
}

impl Slot {
    /// What is to be said while it is not there.
    fn away(&self) -> Error {
        let what = format!(
            "{} was device {} of this export and is empty now: is it mounted?",
            self.dir.display(),
            self.device
        );
        Error::new(ErrorKind::Unreachable, what)
    }
}

pub(crate) struct Shelf {
    local: Folder,
    slots: Vec<Slot>,
    places: Places,
    pub manifest: Manifest,
    signer: Option<ManifestSigner>,
    medium: Medium,
    /// What all packs are expected to take.
    expected_bytes: u64,
}

/// The group as the proxy's state directory has it.
pub(crate) struct Own {
    pub group: GroupName,
    pub group_uuid: GroupUuid,
    pub epoch: Epoch,
    pub volumes: Vec<VolumeSize>,
    /// What the volumes hold at most, holes left out.
    pub data_bytes: u64,
}

impl Own {
    pub fn of(state: GroupState) -> Own {
        let data = |volume: &towline_journal::state::VolumeState| {
            let meta = std::fs::metadata(&volume.path).ok().filter(|meta| meta.is_file());
            // Blocks of 512 bytes, whatever the file system's are.
            let allocated = meta.map_or(u64::MAX, |meta| meta.blocks().saturating_mul(512));
            allocated.min(volume.size_bytes)
        };
        Own {
            data_bytes: state.volumes.iter().map(data).sum(),
            group: state.group,
            group_uuid: GroupUuid(state.group_uuid.0),
            epoch: Epoch(state.epoch),
            volumes: state
                .volumes
                .into_iter()
                .map(|v| VolumeSize { name: v.name, size_bytes: v.size_bytes })
                .collect(),
        }
    }
}

impl Shelf {
    /// Goes on with the export that was begun, or begins one. Everything that can be
    /// refused is refused here, before anything is written. A folder that was a device and
    /// is none now is one that was pulled out.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when a device carries something else, or the export is
    /// finished; [`ErrorKind::NoSpace`] when it cannot fit.
    pub fn open(
        own: &Own,
        plan: &ExportPlan,
        key: Option<KeyId>,
        dir: &GroupDir,
        medium: Medium,
    ) -> Result<Shelf> {
        let local = local(dir);
        let given: Vec<Folder> = plan.to.iter().map(|to| Folder::of(to, &own.group)).collect();
        let mut manifest = load(&local)?;
        let is_known = manifest.is_some();
        for folder in &given {
            let found = match folder.identity()? {
                Some(found) if !is_known => {
                    let what = format!(
                        "{} carries an export ({}) that the source knows no more (`device forget`): give an \
                         empty folder, or remove that one",
                        folder.dir().display(),
                        found.set
                    );
                    return Err(Error::new(ErrorKind::Refused, what));
                }
                Some(_) => load(folder)?,
                None => None,
            };
            manifest = newest(manifest, found, folder)?;
        }
        let is_new = manifest.is_none();
        let mut manifest = manifest.unwrap_or_else(|| Manifest {
            version: MANIFEST_VERSION,
            set: SetId::random(),
            group: own.group.clone(),
            group_uuid: own.group_uuid,
            epoch: own.epoch,
            volumes: own.volumes.clone(),
            key,
            pack_bytes: plan.pack_bytes,
            begun_unix_ns: towline_journal::unix_now_ns(),
            finished: false,
            devices: 1,
            packs: Vec::new(),
        });
        check_own(own, &manifest, key)?;
        if !manifest.finished {
            (manifest.key, manifest.pack_bytes) = (key, plan.pack_bytes);
        }
        let places = if is_new { Places::none() } else { Places::load(&local.folders())? };
        let mut highest = if is_new { 0 } else { manifest.devices };
        let mut slots: Vec<Slot> = Vec::new();
        for (to, folder) in plan.to.iter().zip(given) {
            let device = match (folder.identity()?, places.device(to)) {
                (Some(found), _) if found.set == manifest.set => found.device,
                (Some(found), _) => {
                    let what = format!(
                        "{} carries another export ({}): give an empty folder, or remove that one",
                        folder.dir().display(),
                        found.set
                    );
                    return Err(Error::new(ErrorKind::Refused, what));
                }
                (None, Some(device)) => device,
                (None, None) if manifest.finished => return Err(finished(&own.group)),
                (None, None) => {
                    highest += 1;
                    highest
                }
            };
            if let Some(other) = slots.iter().find(|slot| slot.device == device) {
                let what = format!(
                    "{} and {} would both be device {device} of this export: leave one out; for a new \
                     device give another folder",
                    other.dir.display(),
                    to.display()
                );
                return Err(Error::new(ErrorKind::Refused, what));
            }
            slots.push(Slot { dir: to.clone(), folder, device, maps: 0, is_current: false });
        }
        manifest.devices = manifest.devices.max(highest);
        if manifest.devices > DEVICES_MAX {
            let what = format!("an export has at most {DEVICES_MAX} devices");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let signer = plan.pki.as_deref().map(|pki| ManifestSigner::load(pki, &own.group));
        let signer = signer.transpose()?;
        let expected_bytes = plan.expect.unwrap_or(own.data_bytes);
        let mut shelf = Shelf { local, slots, places, manifest, signer, medium, expected_bytes };
        if !shelf.manifest.finished {
            shelf.check_space()?;
        }
        shelf.begin()?;
        Ok(shelf)
    }

    /// Whether it was a device of this export and is none now.
    fn is_away(&self, slot: &Slot) -> Result<bool> {
        Ok(self.places.folder(slot.device).is_some() && slot.folder.identity()?.is_none())
    }

    /// What a device that is away has free is not known: then it shows later.
    fn check_space(&self) -> Result<()> {
        let needed = self.needed();
        let (mut free, mut is_all_known) = (0u64, true);
        let mut seen = Vec::new();
        for slot in &self.slots {
            if self.is_away(slot)? {
                is_all_known = false;
                continue;
            }
            // Two folders of one file system share its room.
            let device = slot.dir.metadata().map(|meta| meta.dev());
            let device = device.map_err(|e| {
                let what = format!("the device's folder {} is not there", slot.dir.display());
                Error::caused(ErrorKind::Unreachable, what, e)
            })?;
            if !seen.contains(&device) {
                seen.push(device);
                free += room::usable(slot.folder.free_bytes()?);
            }
        }
        if needed <= free || !is_all_known {
            return Ok(());
        }
        let what = format!(
            "the volumes hold up to {} that the devices do not have yet, and there is room for {} \
             beyond the {} that may stay free on each: add a device to --to, or say with --expect what \
             you expect the compressed data to take",
            format_size(needed),
            format_size(free),
            format_size(KEPT_BYTES)
        );
        Err(Error::new(ErrorKind::NoSpace, what))
    }

    /// What is expected to come yet.
    fn needed(&self) -> u64 {
        self.expected_bytes.saturating_sub(self.manifest.bytes())
    }

    /// Local copy first: it says which devices there are. Where they are is noted behind
    /// what makes them devices, and before the first pack.
    fn begin(&mut self) -> Result<()> {
        std::fs::create_dir_all(self.local.dir()).map_err(|e| {
            Error::storage(format!("cannot make {}", self.local.dir().display()), e)
        })?;
        self.local.make(&self.medium)?;
        let folders: Vec<Folder> = self.slots.iter().map(|slot| slot.folder.clone()).collect();
        for number in self.manifest.numbers() {
            if self.local.map(number).exists() {
                continue;
            }
            let has = folders.iter().find_map(|folder| self.sound_map(folder, number));
            let bytes = has.ok_or_else(|| {
                Error::damaged(format!(
                    "the map of pack {number} is neither in the state directory nor on a device \
                     that is here"
                ))
            })?;
            self.medium.replace_plain(&self.local.map(number), &bytes)?;
        }
        self.write_manifest(&self.local)?;
        for slot in &self.slots {
            if !self.is_away(slot)? {
                slot.folder.identify(self.manifest.set, slot.device, &self.medium)?;
                self.places.note(slot.device, &slot.dir);
            }
        }
        self.places.store(&self.local.folders(), &self.medium)?;
        self.bring_up_to_date();
        Ok(())
    }

    fn sound_map(&self, folder: &Folder, number: usize) -> Option<Vec<u8>> {
        let bytes = folder.read_map(number).ok().flatten()?;
        let digest = self.manifest.pack(number)?.map;
        (Digest::of(&bytes) == digest).then_some(bytes)
    }

    fn write_manifest(&self, folder: &Folder) -> Result<()> {
        let bytes = self.manifest.encode(self.signer.as_ref())?;
        self.medium.replace_plain(&folder.manifest(), &bytes)
    }

    /// The device for the next pack, and how large that may become: of those that have
    /// room the one with the least of this export on it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when all are there and full; [`ErrorKind::Unreachable`] while
    /// one that is not there may have room.
    pub fn choose(&self) -> Result<(Folder, u32, u64)> {
        if self.manifest.packs.len() >= PACKS_MAX {
            let what = format!("an export has at most {PACKS_MAX} packs: begin with larger ones");
            return Err(Error::new(ErrorKind::Refused, what));
        }
        let room = |slot: &Slot| {
            let is_there = slot.folder.is_there(self.manifest.set, slot.device);
            let free_bytes = is_there.then(|| slot.folder.free_bytes()).transpose()?;
            Ok(Room { free_bytes, used_bytes: self.used(slot.device).1 })
        };
        let rooms = self.slots.iter().map(room).collect::<Result<Vec<_>>>()?;
        let (index, room) = room::choose(&rooms).map_err(|lack| self.no_room(lack, &rooms))?;
        let slot = &self.slots[index];
        Ok((slot.folder.clone(), slot.device, room.min(self.manifest.pack_bytes)))
    }

    fn no_room(&self, lack: Lack, rooms: &[Room]) -> Error {
        let away = self.slots.iter().zip(rooms).filter(|(_, room)| room.free_bytes.is_none());
        let away: Vec<_> = away.map(|(slot, _)| slot.dir.display().to_string()).collect();
        let away = away.join(" and ");
        match lack {
            Lack::NoneThere => {
                let what = format!(
                    "none of the devices is there (is {away} mounted?): plug one in, or end this and \
                     start again with other folders"
                );
                Error::new(ErrorKind::Unreachable, what)
            }
            Lack::Away => {
                let what = format!(
                    "the devices that are here are full, and {away} is not there: plug it in, or start \
                     again with one more folder"
                );
                Error::new(ErrorKind::Unreachable, what)
            }
            Lack::Full => {
                let free = rooms.iter().filter_map(|room| room.free_bytes).max();
                let what = format!(
                    "the devices are full: {} more were expected, none has more than {} free, and one \
                     with less than {} takes no pack: start again with another folder in --to; what is \
                     there stays",
                    format_size(self.needed()),
                    format_size(free.unwrap_or(0)),
                    format_size(KEPT_BYTES)
                );
                Error::new(ErrorKind::NoSpace, what)
            }
        }
    }

    /// The next pack, in the folder that was chosen.
    pub fn begin_pack(&self, folder: &Folder, bytes_max: u64) -> Result<PackWriter> {
        let (number, before) = (self.manifest.packs.len() + 1, self.manifest.after());
        let sizes = self.manifest.sizes();
        PackWriter::create(folder, number, before, &sizes, bytes_max, &self.medium)
    }

    /// Packs and bytes on a device.
    fn used(&self, device: u32) -> (usize, u64) {
        let of = self.manifest.packs.iter().filter(|pack| pack.device == device);
        of.fold((0, 0), |(packs, bytes), pack| (packs + 1, bytes + pack.bytes))
    }

    /// A pack is durable on its device: its map and the manifest become so here, then on
    /// every device that is there. Map before manifest everywhere: none names a map that is
    /// not beside it. What a device lacks then it gets with the next pack, or at the end.
    pub fn add(&mut self, device: u32, map: &PackMap, after: Stream) -> Result<()> {
        let bytes = map.encode();
        let pack = Pack { device, bytes: map.pack_bytes(), map: Digest::of(&bytes), after };
        self.manifest.packs.push(pack);
        let number = self.manifest.packs.len();
        let stored = self
            .medium
            .replace_plain(&self.local.map(number), &bytes)
            .and_then(|()| self.write_manifest(&self.local));
        if let Err(error) = stored {
            self.manifest.packs.pop();
            return Err(error);
        }
        self.bring_up_to_date();
        Ok(())
    }

    /// Nothing more comes.
    pub fn finish(&mut self) -> Result<()> {
        self.manifest.finished = true;
        self.write_manifest(&self.local)?;
        self.bring_up_to_date();
        Ok(())
    }

    /// Gives every device that is there what it lacks. Which of them are complete is noted,
    /// so that they may be away while others are brought up to date.
    pub fn bring_up_to_date(&mut self) {
        let mut is_news = false;
        for index in 0..self.slots.len() {
            let updated = self.update(index);
            self.slots[index].is_current = updated.is_ok();
            if updated.is_ok() && self.manifest.finished {
                is_news |= self.places.note_complete(self.slots[index].device);
            }
            if let Err(error) = updated {
                let dir = self.slots[index].dir.display();
                tracing::warn!(device = %dir, "{error} (it is tried again later)");
            }
        }
        if is_news && let Err(error) = self.places.store(&self.local.folders(), &self.medium) {
            tracing::warn!("{error}; a device that is complete is asked for again");
        }
    }

    fn update(&mut self, index: usize) -> Result<()> {
        let slot = &self.slots[index];
        if !slot.folder.is_there(self.manifest.set, slot.device) {
            return Err(slot.away());
        }
        for number in slot.maps + 1..=self.manifest.packs.len() {
            if self.sound_map(&slot.folder, number).is_some() {
                continue;
            }
            let bytes = self.sound_map(&self.local, number).ok_or_else(|| {
                Error::damaged(format!(
                    "the map of pack {number} in the state directory is damaged"
                ))
            })?;
            self.medium.replace_plain(&slot.folder.map(number), &bytes)?;
        }
        self.write_manifest(&slot.folder)?;
        self.slots[index].maps = self.manifest.packs.len();
        Ok(())
    }

    /// The devices in use, and those that are not but have packs.
    pub fn views(&self) -> Vec<FolderView> {
        let view = |device: u32, dir: Option<PathBuf>, up_to_date: bool| {
            let (packs, bytes) = self.used(device);
            FolderView { dir, device, packs, bytes, up_to_date }
        };
        let in_use = self.slots.iter();
        let in_use = in_use.map(|slot| view(slot.device, Some(slot.dir.clone()), slot.is_current));
        let others = (1..=self.manifest.devices)
            .filter(|device| self.slots.iter().all(|slot| slot.device != *device))
            .map(|device| {
                let dir = self.places.folder(device).map(Path::to_owned);
                view(device, dir, self.places.is_complete(device))
            })
            .filter(|view| view.packs > 0);
        in_use.chain(others).collect()
    }
}

/// Of two manifests of one export the longer.
fn newest(
    known: Option<Manifest>,
    found: Option<Manifest>,
    folder: &Folder,
) -> Result<Option<Manifest>> {
    let (Some(known), Some(found)) = (&known, &found) else { return Ok(known.or(found)) };
    if known.set != found.set {
        let what = format!(
            "{} carries another export ({}, not {}): give an empty folder, or remove that one",
            folder.dir().display(),
            found.set,
            known.set
        );
        return Err(Error::new(ErrorKind::Refused, what));
    }
    let is_longer = (found.packs.len(), found.finished) > (known.packs.len(), known.finished);
    Ok(Some(if is_longer { found.clone() } else { known.clone() }))
}

fn finished(group: &GroupName) -> Error {
    let what = format!(
        "the export of group {group} is finished: take the devices to `towline device import`. To \
         export everything once more, drop it (towline device forget) and give empty folders"
    );
    Error::new(ErrorKind::Refused, what)
}

fn check_own(own: &Own, manifest: &Manifest, key: Option<KeyId>) -> Result<()> {
    let refused = |what: String| Err(Error::new(ErrorKind::Refused, what));
    if manifest.group_uuid != own.group_uuid || manifest.volumes != own.volumes {
        return refused(format!(
            "the devices carry an export of another group {}, or of other volumes: give empty folders",
            own.group
        ));
    }
    if manifest.epoch != own.epoch {
        return refused(format!(
            "the export is of epoch {}, the group is in epoch {}: drop it (towline device forget) and \
             begin anew on empty folders",
            manifest.epoch.0, own.epoch.0
        ));
    }
    if !manifest.packs.is_empty() && manifest.key.is_some() != key.is_some() {
        return refused(
            "an export is sealed as a whole or not at all: go on as it was begun".into(),
        );
    }
    Ok(())
}
