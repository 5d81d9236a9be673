//! The marks of a directory, for people and for choosing one. Read only; works while a
//! receiver runs and when it is dead.

use super::layout::{HEADER_BYTES, MarkHeader};
use super::{Mark, MarkKind};
use crate::error::{Error, Result};
use crate::receiver::medium::read_at;
use crate::receiver::{Layout, State};
use std::fs::File;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".mark";

/// A mark that can be gone back to, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMark {
    pub mark: Mark,
    /// Of its file: what was overwritten between it and the next one.
    pub bytes: u64,
}

/// All marks of a receiver, oldest first. Its automatic ones only while they count.
pub fn list(state_dir: &Path, state: &State) -> Result<Vec<ListedMark>> {
    let dir = Layout::of(state_dir).marks;
    let mut marks = Vec::new();
    for number in numbers(&dir)? {
        let path = path(&dir, number);
        // It may be removed meanwhile: then it is not there.
        let Ok(file) = File::open(&path) else { continue };
        let mut bytes = [0; HEADER_BYTES];
        if read_at(&file, &path, &mut bytes, 0)? < bytes.len() {
            continue;
        }
        let Some(mark) = MarkHeader::read(&bytes, state.group_uuid) else { continue };
        let applied = &state.applied;
        let counts = match mark.kind {
            MarkKind::Point => !applied.whole && applied.point == mark.stream.point,
            _ => number <= applied.number,
        };
        if counts {
            let bytes = file.metadata().map_or(0, |meta| meta.len());
            marks.push(ListedMark { mark, bytes });
        }
    }
    Ok(marks)
}

pub(in crate::receiver) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}{SUFFIX}"))
}

/// The numbers in a marks folder, rising; nothing where there is none.
pub(in crate::receiver) fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let failed = |e| Error::storage(format!("cannot list {}", dir.display()), e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        numbers.extend(number.and_then(|digits| digits.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
