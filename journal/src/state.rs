//! A group's directory and its `state.json` (`docs/formats/state.md`): who the
//! group is, where its ring lies, how it was last stopped, whether it is sealed.
//! Replaced atomically; never on a guest's write path.

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use towline_block::{GroupName, Identity, Stamp, VolumeName};

pub const STATE_VERSION: u32 = 1;
/// A lock is tried so often, 5 ms apart, before its holder counts as a process.
const LOCK_TRIES: u32 = 20;

#[expect(clippy::disallowed_methods, reason = "at start only, never beside a guest")]
pub(crate) fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(5));
}

/// Paths of one group's files: `DIR/<group>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDir {
    path: PathBuf,
}

impl GroupDir {
    /// The folder of `group` under the `--state` directory.
    pub fn of(state_dir: &Path, group: &GroupName) -> GroupDir {
        GroupDir { path: state_dir.join(group.as_str()) }
    }

    /// `dir` as a person gives it: a group's folder itself, or a state directory
    /// with the given group, or with exactly one group in it.
    pub fn find(dir: &Path, group: Option<&GroupName>) -> Result<GroupDir> {
        let mut found = GroupDir::all(dir)?;
        if let Some(group) = group {
            let wanted = |d: &GroupDir| {
                d.path.file_name().is_some_and(|name| name == group.as_str())
                    || d.load().is_ok_and(|s| s.is_some_and(|s| s.group == *group))
            };
            found.retain(wanted);
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Error::new(
                ErrorKind::Missing,
                match group {
                    Some(group) => format!("there is no group {group} in {}", dir.display()),
                    None => format!("there is no group in {}", dir.display()),
                },
            )),
            count => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{} holds {count} groups: name the one that is meant", dir.display()),
            )),
        }
    }

    /// All groups in a state directory (or the one whose folder `dir` is), by name.
    pub fn all(dir: &Path) -> Result<Vec<GroupDir>> {
        let own = GroupDir { path: dir.to_owned() };
        if own.state_path().exists() {
            return Ok(vec![own]);
        }
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(format!("cannot read {}", dir.display()), e)),
        };
        let mut groups: Vec<GroupDir> = entries
            .filter_map(|entry| Some(GroupDir { path: entry.ok()?.path() }))
            .filter(|group| group.state_path().exists())
            .collect();
        groups.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(groups)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn state_path(&self) -> PathBuf {
        self.path.join("state.json")
    }

    pub fn saved_path(&self) -> PathBuf {
        self.path.join("saved.map")
    }

    pub fn spill_path(&self) -> PathBuf {
        self.path.join("spill")
    }

    /// The last steps of the ladder (`spill/steps.rs`).
    pub fn steps_path(&self) -> PathBuf {
        self.path.join("ladder.json")
    }

    pub fn activity_path(&self) -> PathBuf {
        self.path.join("activity.map")
    }

    pub fn proxy_socket(&self) -> PathBuf {
        self.path.join("proxy.sock")
    }

    pub fn ship_socket(&self) -> PathBuf {
        self.path.join("ship.sock")
    }

    pub fn progress_path(&self) -> PathBuf {
        self.path.join("ship.progress")
    }

    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path)
            .map_err(|e| Error::io(format!("cannot create {}", self.path.display()), e))
    }

    /// Takes the named lock, held as long as the file stays open.
    pub fn lock(&self, name: &str, who: &str) -> Result<File> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        // A tool that looks whether somebody holds it does so for an instant.
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => pause(),
                Err(TryLockError::Error(e)) => {
                    return Err(Error::io(format!("cannot lock {}", path.display()), e));
                }
            }
        }
        let what = format!("another {who} runs for this group (it holds {})", path.display());
        Err(Error::new(ErrorKind::Busy, what))
    }

    /// Whether a process holds the named lock now.
    pub fn is_locked(&self, name: &str) -> bool {
        let Ok(file) = File::open(self.path.join(name)) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// The stored state; `None` when there is none yet.
    pub fn load(&self) -> Result<Option<GroupState>> {
        let path = self.state_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
        };
        GroupState::parse(&path, &text).map(Some)
    }

    /// Replaces the state, durably. Returns the bytes written.
    pub fn store(&self, state: &GroupState) -> Result<u64> {
        let bytes = state.to_json();
        durable::replace(&self.state_path(), &bytes)?;
        Ok(bytes.len() as u64)
    }
}

/// Content of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    pub version: u32,
    pub group: GroupName,
    pub group_uuid: Hex16,
    pub epoch: u32,
    pub incarnation: u32,
    pub ring: RingPlace,
    pub volumes: Vec<VolumeState>,
    /// Set from the seal on; only the receiver's decision changes it again.
    pub seal: Option<Seal>,
    /// Set by an orderly stop, cleared before the next start serves.
    pub stopped: Option<Stopped>,
    /// The incarnation before this one, if its ring was lost and the spill had records
    /// of it: what counts until a target has the first record of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<PastRing>,
    /// Where the spill lies, if not in the group's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill: Option<SpillDevice>,
}

/// A device that the group's spill lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpillDevice {
    pub path: PathBuf,
    /// As in its first page.
    pub id: Hex16,
}

/// A ring that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRing {
    pub incarnation: u32,
    pub ring_id: Hex16,
}

impl GroupState {
    /// The content of the file at `path`, which the error names.
    ///
    /// # Errors
    /// [`ErrorKind::Newer`] for a later version, [`ErrorKind::Damaged`] otherwise.
    pub fn parse(path: &Path, text: &[u8]) -> Result<GroupState> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |e: serde_json::Error| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "{} is damaged ({e}): move its folder away to start over; the target then gets \
                     everything again",
                    path.display()
                ),
            )
        };
        let version = serde_json::from_slice::<Versioned>(text).map_err(damaged)?.version;
        if version > STATE_VERSION {
            return Err(Error::new(
                ErrorKind::Newer,
                format!(
                    "{} has version {version}, this program knows {STATE_VERSION}: use the newer \
                     Towline that wrote it",
                    path.display()
                ),
            ));
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a state is plain data")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPlace {
    pub path: PathBuf,
    pub id: Hex16,
    /// The boot in which it was made: shared memory does not outlive it.
    pub boot_id: Hex16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    pub name: VolumeName,
    pub path: PathBuf,
    pub size_bytes: u64,
    pub identity: Identity,
    /// URIs under which the proxy serves it.
    pub exports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub attempt: u64,
    /// Position of the SEAL record.
    pub seq: u64,
    /// Where the group went, once the receiver has promoted it.
    pub promoted: Option<Promoted>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    pub epoch: u32,
    pub exports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Change stamp of each source after its last flush, where it has one.
    pub stamps: Vec<Option<Stamp>>,
}

/// Sixteen bytes, in hexadecimal where people read them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex16(pub [u8; 16]);

impl Hex16 {
    pub fn random() -> Hex16 {
        Hex16(rand::random())
    }
}

impl std::fmt::Display for Hex16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Hex16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Hex16> for String {
    fn from(value: Hex16) -> String {
        value.to_string()
    }
}

impl TryFrom<String> for Hex16 {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Hex16, String> {
        let bad = || format!("{text:?} is not 32 hexadecimal digits");
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| bad())?;
        }
        Ok(Hex16(bytes))
    }
}

/// When the kernel booted, Unix time in nanoseconds; `None` where it does not tell.
pub fn boot_unix_ns() -> Option<i128> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse::<i128>().ok().map(|seconds| seconds * 1_000_000_000)
}

/// The kernel's boot id; zeroes where it does not tell.
pub fn boot_id() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    Hex16::try_from(digits).map_or([0; 16], |id| id.0)
}
