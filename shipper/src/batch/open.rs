//! A batch as its owner has it: checked, decrypted, unpacked.

use super::header::{self, Shape};
use super::key::{Keyring, TAG_BYTES};
use super::layout::HEADER_BYTES;
use super::pack;
use super::view::BatchView;
use crate::error::{Error, Result};
use crate::ids::BatchHash;
use crate::spare;

/// A whole, valid batch: its bytes as they came, and what was unpacked of them.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Everything behind the header in plain text, where that was sealed.
    opened: Option<Vec<u8>>,
    /// The data, where that was compressed.
    data: Option<Vec<u8>>,
    shape: Shape,
    hash: BatchHash,
}

impl Batch {
    /// Checks everything that needs no context. Memory is taken only after the header,
    /// which declares the sizes, was found sound and within the limits.
    ///
    /// # Errors
    /// [`crate::ErrorKind::TooNew`] for a later format,
    /// [`crate::ErrorKind::NotAuthorised`] when the key of a sealed batch is not in `keys`,
    /// [`crate::ErrorKind::Damaged`] for anything else that is not a sound batch.
    pub fn open(bytes: Vec<u8>, keys: &Keyring) -> Result<Batch> {
        let (header, body) = header::split(&bytes)?;
        let shape = header::check_whole(header, bytes.len())?;
        let opened = match shape.is_sealed {
            true => Some(decrypt(&bytes, &shape, keys)?),
            false => None,
        };
        let plain = opened.as_deref().unwrap_or(body);
        let rows = header::rows(header, &shape, plain)?;
        let data = match shape.is_packed {
            true => {
                let stored = plain.get(shape.stored.clone()).ok_or_else(header::cut_off)?;
                let unit_bytes = header.unit_bytes.get() as usize;
                let number = header.number;
                let unpacked =
                    pack::unpack(stored, rows.units, unit_bytes, header.data_bytes.get() as usize);
                Some(unpacked.map_err(|e| in_batch(number.get(), e))?)
            }
            false => None,
        };
        let hash = header::hash(header, &shape, &bytes);
        let batch = Batch { opened, data, shape, hash, bytes };
        batch.checked()?.check_ops()?;
        Ok(batch)
    }

    /// What it says. Costs nothing: everything was checked when it was opened.
    pub fn view(&self) -> BatchView<'_> {
        self.checked().expect("the parts were there when it was opened")
    }

    fn checked(&self) -> Result<BatchView<'_>> {
        let (_, body) = header::split(&self.bytes)?;
        let body = self.opened.as_deref().unwrap_or(body);
        BatchView::of_parts(&self.bytes, body, self.data.as_deref(), &self.shape, self.hash)
    }

    pub fn is_sealed(&self) -> bool {
        self.shape.is_sealed
    }

    /// As it came, and as it is stored and sent on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it holds in memory: a batch may unpack to many times its size.
    pub fn memory_bytes(&self) -> usize {
        let len = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        self.bytes.len() + len(&self.opened) + len(&self.data)
    }

    /// Done with: its memory is for another.
    pub fn retire(self) {
        spare::put(self.bytes);
    }
}

/// Checks as much of a batch as can be without its key, and gives its hash.
///
/// # Errors
/// As [`Batch::open`]. Of a sealed batch only the header is checked: damage behind it shows
/// in the hash.
pub fn check(bytes: &[u8]) -> Result<BatchHash> {
    let (header, _) = header::split(bytes)?;
    let shape = header::check_whole(header, bytes.len())?;
    if shape.is_sealed {
        return Ok(header::hash(header, &shape, bytes));
    }
    Ok(Batch::open(bytes.to_vec(), &Keyring::default())?.hash)
}

fn in_batch(number: u64, error: Error) -> Error {
    Error::new(error.kind(), format!("batch {number}: {error}"))
}

fn decrypt(bytes: &[u8], shape: &Shape, keys: &Keyring) -> Result<Vec<u8>> {
    let (header, body) = header::split(bytes)?;
    let number = header.number.get();
    let key = keys.get(header::key_id(header)).map_err(|e| in_batch(number, e))?;
    let tag = body.get(shape.tag.clone()).and_then(|tag| <&[u8; TAG_BYTES]>::try_from(tag).ok());
    let tag = tag.ok_or_else(header::cut_off)?;
    let mut plain = body.get(..shape.tag.start).ok_or_else(header::cut_off)?.to_vec();
    let head = bytes.get(..HEADER_BYTES).ok_or_else(header::cut_off)?;
    key.open(&header.salt, head, &mut plain, tag).map_err(|e| in_batch(number, e))?;
    Ok(plain)
}
