//! Tells clones, which read while the receiver writes, of everything that is no append to the newest
//! mark's file: two counters in one small file.
//!
//! Told before the first byte that is written over something, or into a new file, and so before the
//! targets change. For processes that live now alone: nothing of it is durable.

use super::super::medium::{LogFile, Medium, read_at};
use crate::error::Result;
use std::fs::File;
use std::path::{Path, PathBuf};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a clone has seen of it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Seen {
    /// What a file held may be something else now.
    pub rewinds: U64,
    /// There may be a newer file.
    pub files: U64,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("changes")
}

/// As a clone sees it.
pub fn look(dir: &Path, open: &mut Option<File>) -> Result<Seen> {
    let path = path(dir);
    let file = match open.take() {
        Some(file) => file,
        None => File::open(&path)
            .map_err(|e| crate::Error::storage(format!("cannot open {}", path.display()), e))?,
    };
    let mut seen = Seen::default();
    read_at(&file, &path, seen.as_mut_bytes(), 0)?;
    *open = Some(file);
    Ok(seen)
}

pub struct Changes {
    log: LogFile,
    now: Seen,
    is_told: bool,
}

impl Changes {
    /// Nothing of before is believed: a receiver begins by telling so.
    pub fn open(dir: &Path, medium: &Medium) -> Result<Changes> {
        let path = path(dir);
        let log = if path.exists() { medium.open(&path)? } else { medium.create(&path)? };
        let mut now = Seen::default();
        log.read_at(now.as_mut_bytes(), 0)?;
        let mut changes = Changes { log, now, is_told: false };
        changes.rewound();
        changes.tell()?;
        Ok(changes)
    }

    /// What is written next may lie where something else lay.
    pub fn rewound(&mut self) {
        self.now.rewinds = (self.now.rewinds.get() + 1).into();
        self.is_told = false;
    }

    /// What is written next goes to a new file.
    pub fn added(&mut self) {
        self.now.files = (self.now.files.get() + 1).into();
        self.is_told = false;
    }

    /// Call before anything is written.
    pub fn tell(&mut self) -> Result<()> {
        if !self.is_told {
            self.log.rewind(0);
            self.log.append(self.now.as_bytes())?;
            self.is_told = true;
        }
        Ok(())
    }
}
