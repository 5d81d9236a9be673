//! Reading an image block by block, holes unread.

use crate::error::{Error, ErrorKind, Result};
use crate::stamp::{self, STAMP_BYTES, Seen, VolumeHistory};
use std::path::Path;
use towline_block::{Access, FileDisk};

/// One read. Large enough that system calls do not matter.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

pub(super) fn open(image: &Path) -> Result<FileDisk> {
    FileDisk::open(image, Access::Read)
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot check: {e}")))
}

/// Calls `visit` for each block of the volume in rising order.
pub(crate) fn scan(
    history: &VolumeHistory,
    image: &Path,
    mut visit: impl FnMut(u64, Seen),
) -> Result<()> {
    let disk = open(image)?;
    let failed = |e: towline_block::Error| Error::new(ErrorKind::Io, format!("cannot check: {e}"));
    let end = history.block_count * STAMP_BYTES as u64;
    if disk.size_bytes() < end {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} has {} bytes, volume {} has {end}",
                image.display(),
                disk.size_bytes(),
                history.name
            ),
        ));
    }
    let mut buf = vec![0; PIECE_BYTES as usize];
    let mut offset = 0;
    while offset < end {
        let run = disk.run_at(offset).map_err(failed)?;
        // A hole may end inside a block: such a block is read like data.
        let hole_end = run.end.min(end) / STAMP_BYTES as u64 * STAMP_BYTES as u64;
        if !run.is_data && hole_end > offset {
            for block in offset / STAMP_BYTES as u64..hole_end / STAMP_BYTES as u64 {
                visit(block, Seen::Zero);
            }
            offset = hole_end;
            continue;
        }
        let len = PIECE_BYTES.min(end - offset) as usize;
        disk.read_at(&mut buf[..len], offset).map_err(failed)?;
        for (index, block_bytes) in buf[..len].chunks_exact(STAMP_BYTES).enumerate() {
            visit(offset / STAMP_BYTES as u64 + index as u64, stamp::read(block_bytes));
        }
        offset += len as u64;
    }
    Ok(())
}

/// By block, the indices of the ops that touch it, in the order of their ids.
pub(super) fn ops_by_block(history: &VolumeHistory) -> Vec<Vec<u32>> {
    let mut by_block = vec![Vec::new(); history.block_count as usize];
    for (index, op) in history.ops.iter().enumerate() {
        for block in op.blocks() {
            by_block[block as usize].push(index as u32);
        }
    }
    by_block
}
