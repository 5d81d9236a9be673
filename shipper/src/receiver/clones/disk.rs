//! A volume of a clone: the target at the mark, and over it what the clone wrote.

use super::overlay::{Overlay, PIECE_BYTES};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use towline_block::{Extent, PlainDisk, VolumeName};

pub struct CloneDisk {
    view: Arc<View>,
    volume: usize,
    size_bytes: u64,
    overlay: RwLock<Overlay>,
}

impl CloneDisk {
    pub(super) fn create(
        view: Arc<View>,
        volume: usize,
        name: &VolumeName,
        overlays: &Path,
    ) -> Result<CloneDisk> {
        let size_bytes = view.size_bytes(volume);
        let overlay = RwLock::new(Overlay::create(&super::file_of(overlays, name), size_bytes)?);
        Ok(CloneDisk { view, volume, size_bytes, overlay })
    }

    /// Bytes that the clone has written into its overlay.
    pub fn overlay_bytes(&self) -> u64 {
        self.shared().bytes()
    }

    fn shared(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, overlay: &Overlay, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let (here, until) = overlay.run(at, end);
            let part = buf.get_mut((at - offset) as usize..(until - offset) as usize);
            let part = part.unwrap_or_default();
            match here {
                true => overlay.disk().read_at(part, at)?,
                false => self.view.read_at(self.volume, part, at)?,
            }
            at = until;
        }
        Ok(())
    }

    /// The pieces that the extent covers in part are taken over from the target.
    fn take_over(&self, overlay: &mut Overlay, extent: Extent) -> Result<()> {
        let (first, last) = (extent.offset / PIECE_BYTES, (extent.end() - 1) / PIECE_BYTES);
        for piece in [first, last] {
            let start = piece * PIECE_BYTES;
            let end = (start + PIECE_BYTES).min(self.size_bytes);
            let is_whole = extent.offset <= start && end <= extent.end();
            if is_whole || overlay.has(piece) {
                continue;
            }
            let mut bytes = vec![0; (end - start) as usize];
            self.view.read_at(self.volume, &mut bytes, start)?;
            overlay.disk().write_at(&bytes, start)?;
            overlay.count(Extent::new(start, end - start));
        }
        Ok(())
    }

    fn change(&self, extent: Extent, bytes: Option<&[u8]>) -> Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        if !extent.within(self.size_bytes) {
            let what = format!("{extent:?} reaches past the end of the volume");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let overlay = &mut *self.alone();
        self.take_over(overlay, extent)?;
        match bytes {
            Some(bytes) => overlay.disk().write_at(bytes, extent.offset)?,
            None => overlay.disk().zero(extent, false)?,
        }
        overlay.count(extent);
        Ok(())
    }
}

fn told(error: Error) -> towline_block::Error {
    let kind = match error.kind() {
        ErrorKind::NoSpace => towline_block::ErrorKind::NoSpace,
        ErrorKind::InvalidInput => towline_block::ErrorKind::InvalidInput,
        _ => towline_block::ErrorKind::Io,
    };
    towline_block::Error::new(kind, error.to_string())
}

impl PlainDisk for CloneDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> towline_block::Result<()> {
        self.read(&self.shared(), buf, offset).map_err(told)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> towline_block::Result<()> {
        self.change(Extent::new(offset, bytes.len() as u64), Some(bytes)).map_err(told)
    }

    fn zero(&self, extent: Extent) -> towline_block::Result<()> {
        self.change(extent, None).map_err(told)
    }

    /// The overlay ends with the clone, so there is nothing to keep.
    fn flush(&self) -> towline_block::Result<()> {
        Ok(())
    }
}
