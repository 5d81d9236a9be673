//! The target at a mark, to read only.
//!
//! | step of a read | why |
//! |---|---|
//! | 1. read the target | it may be old, new or torn |
//! | 2. learn what was saved since | what step 1 saw of anything newer was saved before it was written |
//! | 3. what was saved wins | it is the content at the mark |
//! | something else lies where an entry was | the receiver wrote over a failed attempt: from step 1 |

use super::super::marks::{self, Mark, Seen};
use super::super::state::TargetRecord;
use super::super::target::TargetDisk;
use super::super::{Layout, medium};
use super::index::{Index, Place, saved};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::GroupUuid;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use towline_block::{BlockRange, Extent, VolumeName};

/// Reads that found something else where an entry was. The receiver writes over an entry only after a
/// failure, at most once in some milliseconds.
const TRIES_MAX: usize = 100;

pub struct View {
    layout: Layout,
    group: GroupUuid,
    mark: Mark,
    names: Vec<VolumeName>,
    sizes: Vec<u64>,
    targets: Vec<TargetDisk>,
    known: Mutex<Known>,
    /// Shared lock on the mark's file: while it is held, no file from the mark on is removed.
    lease: File,
    /// Runs between the steps of a read.
    #[cfg(test)]
    pub between: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

struct Known {
    index: Index,
    changes: Option<File>,
    /// Why nothing can be read any more.
    lost: Option<String>,
}

impl View {
    /// Takes hold of the mark at batch `number`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when there is none, or it is being given up.
    pub fn open(state_dir: &Path, number: u64) -> Result<View> {
        let state = super::state_of(state_dir)?;
        let layout = Layout::of(state_dir);
        let gone = || {
            let what =
                format!("no mark stands at batch {number}: `towline target list-marks` shows them");
            Error::new(ErrorKind::InvalidInput, what)
        };
        let path = marks::file_path(&layout.marks, number);
        let lease = File::open(&path).map_err(|_| gone())?;
        lease.try_lock_shared().map_err(|_| gone())?;
        if number > state.applied.number || !is_linked(&lease, &path) {
            return Err(gone());
        }
        let mut header = [0; size_of::<marks::MarkHeader>()];
        medium::read_at(&lease, &path, &mut header, 0)?;
        let mark = marks::read_header(&header, state.group_uuid).ok_or_else(gone)?;
        let targets: Vec<TargetDisk> =
            state.volumes.iter().map(open_target).collect::<Result<_>>()?;
        let sizes: Vec<u64> = state.volumes.iter().map(|volume| volume.size_bytes).collect();
        let mut changes = None;
        let seen = marks::look_at_changes(&layout.marks, &mut changes)?;
        let index = Index::build(&layout.marks, number, &sizes, seen)?;
        let view = View {
            layout,
            group: state.group_uuid,
            mark,
            names: state.volumes.into_iter().map(|volume| volume.name).collect(),
            sizes,
            targets,
            known: Mutex::new(Known { index, changes, lost: None }),
            lease,
            #[cfg(test)]
            between: Mutex::default(),
        };
        // Between reading the state and taking hold the target may have taken over.
        view.check()?;
        Ok(view)
    }

    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    pub fn names(&self) -> &[VolumeName] {
        &self.names
    }

    pub fn size_bytes(&self, volume: usize) -> u64 {
        self.sizes.get(volume).copied().unwrap_or(0)
    }

    /// Whether the mark can still be read.
    pub fn check(&self) -> Result<()> {
        let known = &mut *self.known();
        self.refresh(known)?;
        self.check_state().inspect_err(|error| known.lost = Some(error.to_string()))
    }

    fn check_state(&self) -> Result<()> {
        let state = super::state_of(self.layout.dir.parent().unwrap_or(Path::new(".")))
            .map_err(|error| Error::new(ErrorKind::Refused, error.to_string()))?;
        match state.group_uuid == self.group {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Refused, "another group is received there by now")),
        }
    }

    /// Fills `buf` with the volume's content at the mark.
    pub fn read_at(&self, volume: usize, buf: &mut [u8], offset: u64) -> Result<()> {
        let extent = Extent::new(offset, buf.len() as u64);
        let size = self.size_bytes(volume);
        let (Some(target), true) = (self.targets.get(volume), extent.within(size)) else {
            let what = format!("{extent:?} is outside volume {volume}");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        };
        for _ in 0..TRIES_MAX {
            target.read_at(buf, offset)?;
            #[cfg(test)]
            self.run_between();
            if self.correct(volume, buf, offset)? {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Storage, "the marks' files are never at rest"))
    }

    /// Lets win what was saved. False when that changed meanwhile.
    fn correct(&self, volume: usize, buf: &mut [u8], offset: u64) -> Result<bool> {
        let extent = Extent::new(offset, buf.len() as u64);
        let blocks = BlockRange::touching(extent);
        let places: Vec<(u64, Place)> = {
            let known = &mut *self.known();
            self.refresh(known)?;
            let of = |block| Some((block, known.index.get((volume as u16, block))?));
            (blocks.first..blocks.end()).filter_map(of).collect()
        };
        for (block, place) in places {
            let whole = BlockRange::new(block, 1).extent(self.size_bytes(volume));
            let (start, end) = (whole.offset.max(offset), whole.end().min(extent.end()));
            let part = buf.get_mut((start - offset) as usize..(end - offset) as usize);
            let part = part.unwrap_or_default();
            let Place::Data(log, at) = place else {
                part.fill(0);
                continue;
            };
            let skip = (start - whole.offset) as usize;
            let data = saved(&log, at, (volume as u16, block), &self.sizes)?;
            let Some(data) = data.as_deref().and_then(|data| data.get(skip..skip + part.len()))
            else {
                let known = &mut *self.known();
                self.rebuild(known)?;
                return Ok(false);
            };
            part.copy_from_slice(data);
        }
        Ok(true)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh(&self, known: &mut Known) -> Result<()> {
        if let Some(lost) = &known.lost {
            return Err(Error::new(ErrorKind::Refused, lost.clone()));
        }
        let seen = marks::look_at_changes(&self.layout.marks, &mut known.changes)?;
        let number = self.mark.stream.number;
        if known.index.refresh(&self.layout.marks, number, &self.sizes, seen)? {
            return Ok(());
        }
        self.rebuild_from(known, seen)
    }

    fn rebuild(&self, known: &mut Known) -> Result<()> {
        let seen = marks::look_at_changes(&self.layout.marks, &mut known.changes)?;
        self.rebuild_from(known, seen)
    }

    /// Something else than an append: maybe the end of all marks.
    fn rebuild_from(&self, known: &mut Known, seen: Seen) -> Result<()> {
        let number = self.mark.stream.number;
        let path = marks::file_path(&self.layout.marks, number);
        let built = match is_linked(&self.lease, &path) {
            true => self
                .check_state()
                .and_then(|()| Index::build(&self.layout.marks, number, &self.sizes, seen)),
            false => Err(Error::new(
                ErrorKind::Refused,
                "the clone's mark is gone: the target has taken over, or the mark's file was damaged",
            )),
        };
        match built {
            Ok(index) => known.index = index,
            Err(error) => {
                known.lost = Some(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn run_between(&self) {
        // Taken out, so that what runs may read, too.
        let between = self.between.lock().unwrap().take();
        if let Some(mut run) = between {
            run();
            self.between.lock().unwrap().get_or_insert(run);
        }
    }

    /// Blocks of 64 KiB that the receiver has overwritten since the mark.
    pub fn overwritten_blocks(&self) -> usize {
        self.known().index.len()
    }
}

fn is_linked(lease: &File, path: &Path) -> bool {
    let (ours, theirs) = (lease.metadata(), std::fs::metadata(path));
    matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours.ino() == theirs.ino())
}

fn open_target(record: &TargetRecord) -> Result<TargetDisk> {
    let disk = TargetDisk::open_to_read(&record.path)?;
    if disk.size_bytes() != record.size_bytes {
        let (name, is, was) = (&record.name, disk.size_bytes(), record.size_bytes);
        let what = format!("target {name} has {is} bytes, but had {was} when it was last used");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(disk)
}
