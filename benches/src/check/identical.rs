//! Whether two images read the same, byte by byte, holes unread.

use super::scan::{PIECE_BYTES, open};
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub size_bytes: u64,
    pub other_size_bytes: u64,
    /// Offset of the first byte that differs, within the shorter image.
    pub first_difference: Option<u64>,
}

impl Comparison {
    pub fn is_good(&self) -> bool {
        self.size_bytes == self.other_size_bytes && self.first_difference.is_none()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first_difference {
            Some(at) => write!(f, "the images differ first at byte {at}"),
            None if self.is_good() => write!(f, "identical, {} bytes", self.size_bytes),
            None => write!(f, "{} and {} bytes long", self.size_bytes, self.other_size_bytes),
        }
    }
}

/// Compares two images or block devices.
pub fn identical(one: &Path, other: &Path) -> Result<Comparison> {
    let failed =
        |e: towline_block::Error| Error::new(ErrorKind::Io, format!("cannot compare: {e}"));
    let (one, other) = (open(one)?, open(other)?);
    let (size_bytes, other_size_bytes) = (one.size_bytes(), other.size_bytes());
    let end = size_bytes.min(other_size_bytes);
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let mut other_bytes = vec![0; PIECE_BYTES as usize];
    let mut comparison = Comparison { size_bytes, other_size_bytes, first_difference: None };
    let mut offset = 0;
    while offset < end {
        let run = one.run_at(offset).map_err(failed)?;
        let other_run = other.run_at(offset).map_err(failed)?;
        let run_end = run.end.min(other_run.end).min(end);
        if !run.is_data && !other_run.is_data {
            offset = run_end;
            continue;
        }
        let len = PIECE_BYTES.min(run_end - offset) as usize;
        let (bytes, other_bytes) = (&mut bytes[..len], &mut other_bytes[..len]);
        for (disk, is_data, bytes) in
            [(&one, run.is_data, &mut *bytes), (&other, other_run.is_data, &mut *other_bytes)]
        {
            if is_data {
                disk.read_at(bytes, offset).map_err(failed)?;
            } else {
                bytes.fill(0);
            }
        }
        if bytes != other_bytes {
            let at = bytes.iter().zip(other_bytes.iter()).position(|(a, b)| a != b);
            comparison.first_difference = at.map(|at| offset + at as u64);
            return Ok(comparison);
        }
        offset += len as u64;
    }
    Ok(comparison)
}
