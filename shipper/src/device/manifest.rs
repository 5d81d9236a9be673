//! The manifest: what an export has put on its devices, in the order of the stream. One
//! line of JSON, and one line with its signature.

use super::sign::{ManifestSigner, Signature, Trust};
use super::{PACK_BYTES_MAX, PACK_BYTES_MIN};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BatchHash, Digest, GroupUuid, KeyId, SetId};
use crate::receiver::Stream;
use crate::wire::{VOLUMES_MAX, VolumeSize};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use towline_block::{Epoch, GroupName, Position};

pub const MANIFEST_VERSION: u32 = 1;
/// Packs of one export: their numbers are kept in 16 bits a block where devices come out
/// of order. 256 TiB of the default size.
pub const PACKS_MAX: usize = u16::MAX as usize;
/// A manifest of so many packs, with room.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 96 << 20;
/// All volumes of a group together: their maps of blocks fit memory.
const VOLUMES_BYTES_MAX: u64 = 256 << 40;
/// Devices of one export.
pub(crate) const DEVICES_MAX: u32 = 1024;

/// A closed pack. Its number is its place in the manifest, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// The device that it was written to, from 1. Where it lies counts, not this.
    pub device: u32,
    pub bytes: u64,
    pub map: Digest,
    /// The stream after its last batch.
    pub after: Stream,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub set: SetId,
    pub group: GroupName,
    pub group_uuid: GroupUuid,
    pub epoch: Epoch,
    /// In the order of their ids.
    pub volumes: Vec<VolumeSize>,
    /// The key that its newest batches are sealed with.
    pub key: Option<KeyId>,
    pub pack_bytes: u64,
    pub begun_unix_ns: u64,
    /// Nothing more comes: all blocks were read once.
    pub finished: bool,
    /// Devices that packs were ever written to, or may be.
    pub devices: u32,
    pub packs: Vec<Pack>,
}

impl Manifest {
    /// The stream after its last pack.
    pub fn after(&self) -> Stream {
        self.before(self.packs.len() + 1)
    }

    /// The stream before pack `number`.
    pub fn before(&self, number: usize) -> Stream {
        let before = number.checked_sub(2).and_then(|index| self.packs.get(index));
        before.map(|pack| pack.after.clone()).unwrap_or_default()
    }

    pub fn pack(&self, number: usize) -> Option<&Pack> {
        number.checked_sub(1).and_then(|index| self.packs.get(index))
    }

    /// Numbers of all packs.
    pub fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.packs.len()
    }

    /// Whether a target that stands there needs nothing of this export: it has its last
    /// batch, or went on behind it. A number alone says nothing: it may be of another
    /// chain.
    pub(crate) fn is_had_at(&self, number: u64, hash: BatchHash, position: Position) -> bool {
        let end = self.after();
        match number.cmp(&end.number) {
            Ordering::Less => false,
            Ordering::Equal => hash == end.hash,
            Ordering::Greater => position >= end.position,
        }
    }

    pub fn sizes(&self) -> Vec<u64> {
        self.volumes.iter().map(|volume| volume.size_bytes).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.packs.iter().map(|pack| pack.bytes).sum()
    }

    /// Both lines.
    pub fn encode(&self, signer: Option<&ManifestSigner>) -> Result<Vec<u8>> {
        let unusable = |e| Error::caused(ErrorKind::InvalidInput, "cannot write the manifest", e);
        let mut text = serde_json::to_vec(self).map_err(unusable)?;
        let signature = signer.map(|signer| signer.sign(&text)).transpose()?;
        text.push(b'\n');
        serde_json::to_writer(&mut text, &signature).map_err(unusable)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a manifest that anybody may have written.
    ///
    /// # Errors
    /// [`ErrorKind::NotAuthorised`] when it is not signed by who may write its group;
    /// [`ErrorKind::TooNew`] for a later format; [`ErrorKind::Damaged`] for all else.
    pub fn decode(bytes: &[u8], trust: &Trust) -> Result<Manifest> {
        let damaged = |e| Error::caused(ErrorKind::Damaged, "the manifest is damaged", e);
        let cut = || Error::damaged("the manifest is cut off");
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let (line, signature) = (lines.next().ok_or_else(cut)?, lines.next().ok_or_else(cut)?);
        #[derive(Deserialize)]
        struct Head {
            version: u32,
            group: GroupName,
        }
        let Head { version, group } = serde_json::from_slice(line).map_err(damaged)?;
        let signature: Option<Signature> = serde_json::from_slice(signature).map_err(damaged)?;
        trust.check(&group, line, signature.as_ref())?;
        if version > MANIFEST_VERSION {
            let what = format!(
                "the manifest has version {version}, this program reads up to {MANIFEST_VERSION}: \
                 update towline"
            );
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        let manifest: Manifest = serde_json::from_slice(line).map_err(damaged)?;
        match manifest.contradiction() {
            None => Ok(manifest),
            Some(what) => Err(Error::damaged(format!("the manifest contradicts itself: {what}"))),
        }
    }

    fn contradiction(&self) -> Option<&'static str> {
        let sizes = self.sizes();
        let total = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size));
        let names: BTreeSet<_> = self.volumes.iter().map(|volume| &volume.name).collect();
        if !(1..=VOLUMES_MAX).contains(&sizes.len()) || names.len() != sizes.len() {
            return Some("too few or too many volumes, or two of one name");
        }
        if sizes.contains(&0) || total.is_none_or(|total| total > VOLUMES_BYTES_MAX) {
            return Some("a volume is empty, or all are too large");
        }
        if self.epoch == Epoch(0) || !(1..=DEVICES_MAX).contains(&self.devices) {
            return Some("no epoch, or no devices");
        }
        if !(PACK_BYTES_MIN..=PACK_BYTES_MAX).contains(&self.pack_bytes) {
            return Some("its packs' size");
        }
        if self.packs.len() > PACKS_MAX {
            return Some("too many packs");
        }
        let follows = self.numbers().all(|number| {
            let before = self.before(number);
            self.pack(number).is_some_and(|pack| {
                pack.after.number > before.number
                    && before.stream_bytes.checked_add(pack.bytes) == Some(pack.after.stream_bytes)
                    && pack.after.position.epoch <= self.epoch
                    && (1..=self.devices).contains(&pack.device)
            })
        });
        (!follows).then_some("a pack does not follow the one before")
    }
}
