//! Every change to a group's files outside the data path, in one place.
//!
//! An observer sees each change *before* it is made, on the thread that makes it; the
//! threads of a journal have the observer of the thread that opened it.
//! Tests rebuild every state a kill or a power cut could leave; production has none.

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// One change, about to be made.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The file is created or emptied, and gets this content.
    Write {
        file: &'a Path,
        bytes: &'a [u8],
    },
    /// These bytes are written over the file's.
    WriteAt {
        file: &'a Path,
        at: u64,
        bytes: &'a [u8],
    },
    Sync {
        file: &'a Path,
    },
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Remove {
        file: &'a Path,
    },
    SyncDir {
        dir: &'a Path,
    },
}

type Observer = Arc<Mutex<dyn FnMut(Event<'_>) + Send>>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Shows the changes of this thread, and of those that a journal opened on it starts from
/// now on, to `observer`.
pub fn observe(observer: Option<Observer>) {
    OBSERVER.set(observer);
}

/// For a thread that the calling one is about to start.
pub(crate) fn observer() -> Option<Observer> {
    OBSERVER.with_borrow(Clone::clone)
}

pub(crate) fn about(event: Event<'_>) {
    // Not borrowed while it runs.
    if let Some(observer) = observer() {
        (observer.lock().expect("no observer panics"))(event);
    }
}

/// Writes a file so that after any crash the old or the new content is there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = |e| Error::io(format!("cannot write {}", path.display()), e);
    let temporary = path.with_extension("tmp");
    about(Event::Write { file: &temporary, bytes });
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(what)?;
    file.write_all(bytes).map_err(what)?;
    about(Event::Sync { file: &temporary });
    file.sync_all().map_err(what)?;
    about(Event::Rename { from: &temporary, to: path });
    fs::rename(&temporary, path).map_err(what)?;
    sync_parent(path)
}

/// Removes a file, durably; nothing to do when it is not there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    about(Event::Remove { file: path });
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(format!("cannot remove {}", path.display()), e)),
    }
}

/// Removes a ring, which no crash need ever find gone. What cannot be removed is left.
pub(crate) fn remove_ring(path: &Path) {
    about(Event::Remove { file: path });
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(ring = %path.display(), %error, "an old ring was not removed");
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    about(Event::SyncDir { dir: parent });
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(format!("cannot sync {}", parent.display()), e))
}
