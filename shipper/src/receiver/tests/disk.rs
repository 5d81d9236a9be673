//! A recorder of changes, and the states a crash could leave.

use crate::receiver::medium::{Event, Observe};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use towline_block::Extent;

/// A recorded change.
#[derive(Clone, Debug)]
pub enum Change {
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    Zero(PathBuf, Extent),
    Truncate(PathBuf, u64),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

/// Looks before each change; an error is what the medium answers.
type Watch = Box<dyn FnMut(&Change) -> std::io::Result<()> + Send>;

/// Records every change; refuses writes to one path while told to.
#[derive(Default)]
pub struct Recorder {
    pub changes: Mutex<Vec<Change>>,
    pub fail: Mutex<Option<(PathBuf, i32)>>,
    pub watch: Mutex<Option<Watch>>,
}

impl Recorder {
    pub fn len(&self) -> usize {
        self.changes.lock().unwrap().len()
    }

    pub fn take(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock().unwrap())
    }
}

impl Observe for Recorder {
    fn event(&self, event: Event<'_>) -> std::io::Result<()> {
        let change = match event {
            Event::Create { file } => Change::Create(file.into()),
            Event::Write { file, offset, bytes } => {
                Change::Write(file.into(), offset, bytes.to_vec())
            }
            Event::Zero { file, extent } => Change::Zero(file.into(), extent),
            Event::Truncate { file, len } => Change::Truncate(file.into(), len),
            Event::Sync { file } => Change::Sync(file.into()),
            Event::Rename { from, to } => Change::Rename(from.into(), to.into()),
            Event::Remove { file } => Change::Remove(file.into()),
            Event::SyncDir { dir } => Change::SyncDir(dir.into()),
        };
        if let Some(watch) = &mut *self.watch.lock().unwrap() {
            watch(&change)?;
        }
        if let Some((path, errno)) = &*self.fail.lock().unwrap()
            && let Change::Write(file, ..) | Change::Sync(file) = &change
            && file.starts_with(path)
        {
            return Err(std::io::Error::from_raw_os_error(*errno));
        }
        self.changes.lock().unwrap().push(change);
        Ok(())
    }
}

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process: everything handed to the kernel stays.
    Kill,
    /// The process, half of its next write done.
    Torn,
    /// Power: nothing stays but what was synced.
    Power,
    /// Power: of what was not synced, any part stays.
    PowerMixed(u64),
}

#[derive(Clone, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Content changes since the last sync.
    unsynced: Vec<Change>,
}

/// Files by number, names by path: now and as they survive a power cut.
#[derive(Clone, Default)]
pub struct Model {
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
}

impl Model {
    /// A file that is there, durably, before anything happens.
    pub fn put(&mut self, path: &Path, content: Vec<u8>) {
        let durable = content.clone();
        self.files.push(File { now: content, durable, unsynced: Vec::new() });
        self.names.insert(path.into(), self.files.len() - 1);
        self.durable_names.insert(path.into(), self.files.len() - 1);
    }

    pub fn make(&mut self, change: &Change) {
        match change {
            Change::Create(path) => {
                // An existing file is truncated in place, as the kernel does.
                if let Some(number) = self.names.get(path) {
                    let file = &mut self.files[*number];
                    file.now.clear();
                    file.unsynced.push(Change::Truncate(path.clone(), 0));
                } else {
                    self.files.push(File::default());
                    self.names.insert(path.clone(), self.files.len() - 1);
                }
            }
            Change::Write(path, ..) | Change::Zero(path, _) | Change::Truncate(path, _) => {
                let file = &mut self.files[self.names[path]];
                alter(&mut file.now, change);
                file.unsynced.push(change.clone());
            }
            Change::Sync(path) => {
                let file = &mut self.files[self.names[path]];
                file.durable = file.now.clone();
                file.unsynced.clear();
            }
            Change::Rename(from, to) => {
                let number = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), number);
            }
            Change::Remove(path) => {
                self.names.remove(path);
            }
            Change::SyncDir(dir) => {
                self.durable_names.retain(|path, _| path.parent() != Some(dir));
                let names = self.names.iter().filter(|(path, _)| path.parent() == Some(dir));
                self.durable_names.extend(names.map(|(path, number)| (path.clone(), *number)));
            }
        }
    }

    /// The files a crash leaves; `next` is the change that was not finished.
    pub fn after(&self, crash: Crash, next: Option<&Change>) -> BTreeMap<PathBuf, Vec<u8>> {
        let now = |file: &File| file.now.clone();
        match crash {
            Crash::Kill => self.files_by(&self.names, now),
            Crash::Torn => {
                let mut torn = self.clone();
                if let Some(Change::Write(path, offset, bytes)) = next {
                    let half = bytes[..bytes.len() / 2].to_vec();
                    torn.make(&Change::Write(path.clone(), *offset, half));
                }
                torn.files_by(&torn.names, now)
            }
            Crash::Power => self.files_by(&self.durable_names, |file| file.durable.clone()),
            Crash::PowerMixed(seed) => {
                let mut state = seed;
                self.files_by(&self.names, move |file| {
                    let mut content = file.durable.clone();
                    for change in &file.unsynced {
                        // Truncation is ordered metadata; data goes in any order.
                        let keep = matches!(change, Change::Truncate(..));
                        if keep || super::history::random(&mut state) & 1 == 1 {
                            alter(&mut content, change);
                        }
                    }
                    content
                })
            }
        }
    }

    fn files_by(
        &self,
        names: &BTreeMap<PathBuf, usize>,
        mut content: impl FnMut(&File) -> Vec<u8>,
    ) -> BTreeMap<PathBuf, Vec<u8>> {
        names.iter().map(|(path, number)| (path.clone(), content(&self.files[*number]))).collect()
    }
}

fn alter(content: &mut Vec<u8>, change: &Change) {
    let grow = |content: &mut Vec<u8>, end: usize| {
        if content.len() < end {
            content.resize(end, 0);
        }
    };
    match change {
        Change::Write(_, offset, bytes) => {
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            grow(content, end);
            content[start..end].copy_from_slice(bytes);
        }
        Change::Zero(_, extent) => {
            grow(content, extent.end() as usize);
            content[extent.offset as usize..extent.end() as usize].fill(0);
        }
        Change::Truncate(_, len) => content.resize(*len as usize, 0),
        _ => {}
    }
}

/// Puts exactly these files below `root`; directories stay.
pub fn lay_out(root: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    fn clear(dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { clear(&path) } else { std::fs::remove_file(path).unwrap() }
        }
    }
    clear(root);
    for (path, content) in files {
        std::fs::write(path, content).unwrap();
    }
}
