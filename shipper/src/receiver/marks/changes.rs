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

/// Beside the folder of the marks.
fn path(marks: &Path) -> PathBuf {
    marks.with_file_name("changes")
}

/// As a clone sees it; zeroes before a receiver has told anything.
pub fn look(marks: &Path, open: &mut Option<File>) -> Result<Seen> {
    let path = path(marks);
    let file = match open.take() {
        Some(file) => file,
        None => match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::default()),
            Err(e) => {
                let what = format!("cannot open {}", path.display());
                return Err(crate::Error::storage(what, e));
            }
        },
    };
    let mut seen = Seen::default();
    read_at(&file, &path, seen.as_mut_bytes(), 0)?;
    *open = Some(file);
    Ok(seen)
}

pub struct Changes {
    path: PathBuf,
    medium: Medium,
    log: Option<LogFile>,
    now: Seen,
    is_told: bool,
}

impl Changes {
    /// Nothing of before is to be believed, which is told before anything is written.
    pub fn open(marks: &Path, medium: &Medium) -> Result<Changes> {
        let path = path(marks);
        let log = if path.exists() { Some(medium.open(&path)?) } else { None };
        let mut now = Seen::default();
        if let Some(log) = &log {
            log.read_at(now.as_mut_bytes(), 0)?;
        }
        let mut changes = Changes { path, medium: medium.clone(), log, now, is_told: false };
        changes.rewound();
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
        if self.is_told {
            return Ok(());
        }
        let mut log = match self.log.take() {
            Some(log) => log,
            None => self.medium.create(&self.path)?,
        };
        log.rewind(0);
        let told = log.append(self.now.as_bytes());
        self.log = Some(log);
        self.is_told = told.is_ok();
        told
    }
}
