//! Compressing the data of a batch in units, and unpacking what anybody may have written.
//!
//! A unit that does not get smaller is stored as it is. Unpacking never allocates or
//! writes more than the header declares, which is checked against the format's limits
//! before.

use super::layout::{UNIT_LZ4, UNIT_RAW, UNIT_ROW_BYTES, UNIT_ZSTD};
use crate::error::{Error, ErrorKind, Result};
use zerocopy::little_endian::U32;

/// Bytes of one unit. From 64 KiB on compressors reach their ratio; small units keep
/// what one damaged or incompressible piece costs small.
pub const UNIT_BYTES: usize = 256 << 10;
pub const UNIT_BYTES_MIN: usize = 64 << 10;
pub const UNIT_BYTES_MAX: usize = 1 << 20;

/// zstd's level. Higher ones cost more CPU than a link of 100 Mbit/s can save.
const ZSTD_LEVEL: i32 = 1;

/// A unit is looked at before it is compressed: so many pieces of so many bytes.
const SAMPLES: usize = 4;
const SAMPLE_BYTES: usize = 4096;
/// Samples that keep more than 31/32 of their size promise nothing.
const SAMPLE_GAIN: usize = 32;

/// How data is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    None,
    Lz4,
    Zstd,
}

/// Keeps the compressors' memory from batch to batch.
pub struct Packer {
    method: Method,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl Packer {
    pub fn new(method: Method) -> Packer {
        Packer { method, zstd: None, scratch: Vec::new() }
    }

    pub fn method(&self) -> Method {
        self.method
    }

    /// For the batches to come.
    pub fn set_method(&mut self, method: Method) {
        self.method = method;
    }

    /// Appends the units of `data` to `out`; their rows. `None` when nothing would be
    /// gained, with `out` as it was.
    pub(super) fn pack(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Option<Vec<U32>>> {
        if self.method == Method::None || data.is_empty() {
            return Ok(None);
        }
        let start = out.len();
        let mut rows = Vec::with_capacity(data.len().div_ceil(UNIT_BYTES));
        for unit in data.chunks(UNIT_BYTES) {
            let at = out.len();
            let method = self.pack_unit(unit, out)?;
            let stored = (out.len() - at) as u32;
            rows.push(U32::new(u32::from(method) << 24 | stored));
        }
        if out.len() - start + rows.len() * UNIT_ROW_BYTES >= data.len() {
            out.truncate(start);
            return Ok(None);
        }
        Ok(Some(rows))
    }

    fn pack_unit(&mut self, unit: &[u8], out: &mut Vec<u8>) -> Result<u8> {
        let at = out.len();
        if !self.is_promising(unit) {
            out.extend_from_slice(unit);
            return Ok(UNIT_RAW);
        }
        // Twice the room: a compressor is fastest when it need not look at its limit.
        self.scratch.resize(lz4_flex::block::get_maximum_output_size(unit.len()), 0);
        let method = match self.method {
            Method::Zstd => UNIT_ZSTD,
            _ => UNIT_LZ4,
        };
        let packed = match method {
            UNIT_ZSTD => self.zstd(unit),
            _ => lz4_flex::block::compress_into(unit, &mut self.scratch).ok(),
        };
        match packed.and_then(|len| self.scratch.get(..len)).filter(|p| p.len() < unit.len()) {
            Some(packed) => {
                out.extend_from_slice(packed);
                Ok(method)
            }
            None => {
                out.truncate(at);
                out.extend_from_slice(unit);
                Ok(UNIT_RAW)
            }
        }
    }

    fn zstd(&mut self, unit: &[u8]) -> Option<usize> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        self.zstd.as_mut()?.compress_to_buffer(unit, &mut self.scratch[..]).ok()
    }

    /// Whether a look at a few pieces says that the unit gets smaller.
    fn is_promising(&mut self, unit: &[u8]) -> bool {
        if unit.len() <= SAMPLES * SAMPLE_BYTES * 2 {
            return true;
        }
        let step = unit.len() / SAMPLES;
        self.scratch.resize(lz4_flex::block::get_maximum_output_size(SAMPLE_BYTES), 0);
        let kept: usize = (0..SAMPLES)
            .filter_map(|at| unit.get(at * step..at * step + SAMPLE_BYTES))
            .map(|sample| {
                let packed = lz4_flex::block::compress_into(sample, &mut self.scratch);
                packed.map_or(SAMPLE_BYTES, |len| len.min(SAMPLE_BYTES))
            })
            .sum();
        let looked_at = SAMPLES * SAMPLE_BYTES;
        kept < looked_at - looked_at / SAMPLE_GAIN
    }
}

/// Unpacks `stored`, cut by `rows`, to exactly `data_bytes`. The caller has checked
/// `data_bytes`, `unit_bytes` and the count of rows against the limits.
pub(super) fn unpack(
    stored: &[u8],
    rows: &[U32],
    unit_bytes: usize,
    data_bytes: usize,
) -> Result<Vec<u8>> {
    let total: usize = rows.iter().map(|row| (row.get() & 0xff_ffff) as usize).sum();
    if total != stored.len() {
        return Err(Error::damaged("the stored units do not fill the stored data"));
    }
    let mut data = vec![0; data_bytes];
    let mut rest = stored;
    let mut zstd = None;
    for (unit, row) in data.chunks_mut(unit_bytes).zip(rows) {
        let (method, len) = ((row.get() >> 24) as u8, (row.get() & 0xff_ffff) as usize);
        let Some((packed, after)) = rest.split_at_checked(len) else {
            return Err(Error::damaged("a stored unit is cut off"));
        };
        rest = after;
        let filled = match method {
            UNIT_RAW if packed.len() == unit.len() => {
                unit.copy_from_slice(packed);
                Some(unit.len())
            }
            UNIT_LZ4 => lz4_flex::block::decompress_into(packed, unit).ok(),
            UNIT_ZSTD => {
                if zstd.is_none() {
                    zstd = Some(zstd::bulk::Decompressor::new().map_err(|e| {
                        Error::caused(ErrorKind::Storage, "no memory to decompress", e)
                    })?);
                }
                zstd.as_mut().and_then(|zstd| zstd.decompress_to_buffer(packed, unit).ok())
            }
            _ => None,
        };
        if filled != Some(unit.len()) {
            return Err(Error::damaged("a stored unit does not unpack to its size"));
        }
    }
    Ok(data)
}
