//! `saved.map`: the change map of an orderly stop, for when shared memory is gone
//! at the next start (a reboot). Format: `docs/formats/journal.md`.

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VOLUMES_MAX;
use std::path::Path;
use towline_block::crc32c;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const SAVED_MAGIC: [u8; 8] = *b"TWLSAVED";
pub const SAVED_VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SavedHeader {
    pub magic: [u8; 8],
    pub version: U32,
    pub incarnation: U32,
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    /// What the target had when this was saved.
    pub acked_seq: U64,
    pub acked_claims: U64,
    pub volume_count: U32,
    pub reserved: U32,
    pub body_bytes: U64,
    pub body_crc: U32,
    /// CRC-32C of all header bytes before this field.
    pub crc: U32,
}

const HEADER_BYTES: usize = size_of::<SavedHeader>();

/// A change map on its way to or from disk: one bit a block, 64 to a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    pub group_uuid: [u8; 16],
    pub ring_id: [u8; 16],
    pub incarnation: u32,
    pub acked_seq: u64,
    pub acked_claims: u64,
    pub words: Vec<Vec<u64>>,
}

impl Saved {
    /// Returns the bytes written.
    pub fn store(&self, path: &Path) -> Result<u64> {
        let mut body = Vec::new();
        for words in &self.words {
            body.extend_from_slice(&(words.len() as u64).to_le_bytes());
            body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        let mut header = SavedHeader {
            magic: SAVED_MAGIC,
            version: SAVED_VERSION.into(),
            incarnation: self.incarnation.into(),
            group_uuid: self.group_uuid,
            ring_id: self.ring_id,
            acked_seq: self.acked_seq.into(),
            acked_claims: self.acked_claims.into(),
            volume_count: (self.words.len() as u32).into(),
            reserved: 0.into(),
            body_bytes: (body.len() as u64).into(),
            body_crc: crc32c(&body).into(),
            crc: 0.into(),
        };
        header.crc = crc32c(&header.as_bytes()[..HEADER_BYTES - 4]).into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        durable::replace(path, &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// `None` when there is no such file.
    pub fn load(path: &Path) -> Result<Option<Saved>> {
        match std::fs::read(path) {
            Ok(bytes) => parse(&bytes)
                .map(Some)
                .map_err(|e| Error::new(e.kind(), format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
        }
    }

    pub fn remove(path: &Path) -> Result<()> {
        durable::remove(path)
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Saved> {
    let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("saved map: {what}"));
    let (header, body) =
        SavedHeader::read_from_prefix(bytes).map_err(|_| damaged("header is short"))?;
    if header.magic != SAVED_MAGIC {
        return Err(damaged("magic is wrong"));
    }
    if header.version.get() > SAVED_VERSION {
        return Err(Error::new(ErrorKind::Newer, "saved map was written by a newer Towline"));
    }
    if crc32c(&bytes[..HEADER_BYTES - 4]) != header.crc.get() {
        return Err(damaged("header fails its checksum"));
    }
    if body.len() as u64 != header.body_bytes.get() || crc32c(body) != header.body_crc.get() {
        return Err(damaged("body fails its checksum"));
    }
    if header.reserved.get() != 0 || header.version.get() != SAVED_VERSION {
        return Err(damaged("header contradicts itself"));
    }
    if header.volume_count.get() as usize > VOLUMES_MAX {
        return Err(damaged("too many volumes"));
    }
    let mut values = body.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let mut words = Vec::new();
    for _ in 0..header.volume_count.get() {
        let count = values.next().ok_or_else(|| damaged("body is short"))?;
        let volume: Vec<u64> = values.by_ref().take(count as usize).collect();
        if volume.len() as u64 != count {
            return Err(damaged("body is short"));
        }
        words.push(volume);
    }
    Ok(Saved {
        group_uuid: header.group_uuid,
        ring_id: header.ring_id,
        incarnation: header.incarnation.get(),
        acked_seq: header.acked_seq.get(),
        acked_claims: header.acked_claims.get(),
        words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Saved {
        Saved {
            group_uuid: [1; 16],
            ring_id: [2; 16],
            incarnation: 3,
            acked_seq: 4,
            acked_claims: 5,
            words: vec![vec![u64::MAX, 1], vec![], vec![7]],
        }
    }

    #[test]
    fn a_saved_map_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("saved.map");
        assert_eq!(Saved::load(&path).unwrap(), None);
        sample().store(&path).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), Some(sample()));
        Saved::remove(&path).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("saved.map");
        sample().store(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(parse(&bytes).is_err(), "bit {at}");
        }
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "cut to {len}");
        }
    }
}
