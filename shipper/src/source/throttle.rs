//! Limits that hold a group's shipping, or that of all groups of one link, back: the
//! plan the shipper was started with, what `throttle.json` puts over it, what the
//! governor allows, and the buckets that carry it out.
//!
//! A change of the file is seen within [`LOOK_EVERY`]; whoever waits looks again as often
//! as that, so it works on those that wait already.

use crate::error::{Error, ErrorKind, Result};
use crate::receiver::medium::Medium;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use towline_control::rate::{Bucket, InForce, Limit, Overlay, Plan, WINDOWS_MAX, Why};
use towline_journal::GroupDir;

/// How often files and calendar are looked at, and longest wait without a look.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const FILE_VERSION: u32 = 1;

/// `throttle.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ThrottleFile {
    version: u32,
    /// Tells two files apart: nanoseconds of its making.
    pub generation: u64,
    pub overlay: Overlay,
}

/// Where a group's limits are changed.
pub fn group_file(dir: &GroupDir) -> PathBuf {
    dir.path().join("throttle.json")
}

/// Where the limits of all groups of a state directory's shipper are changed.
pub fn link_file(state_dir: &Path) -> PathBuf {
    state_dir.join("link-throttle.json")
}

impl ThrottleFile {
    /// `None` when nothing was changed since the start.
    pub fn load(path: &Path) -> Result<Option<ThrottleFile>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::storage(format!("cannot read {}", path.display()), e)),
        };
        let file: ThrottleFile = serde_json::from_slice(&text).map_err(|e| {
            let what = format!("{} is no throttle file: remove it", path.display());
            Error::caused(ErrorKind::Damaged, what, e)
        })?;
        if file.version > FILE_VERSION {
            let what = format!("{} is of a newer version: update towline", path.display());
            return Err(Error::new(ErrorKind::TooNew, what));
        }
        Ok(Some(file))
    }

    /// Replaces the file; a shipper that runs takes it by itself. Answers its generation.
    pub fn store(path: &Path, overlay: Overlay) -> Result<u64> {
        if overlay.windows.as_ref().is_some_and(|windows| windows.len() > WINDOWS_MAX) {
            let what = format!("more than {WINDOWS_MAX} windows");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let generation = towline_journal::unix_now_ns();
        let file = ThrottleFile { version: FILE_VERSION, generation, overlay };
        let mut text = serde_json::to_vec_pretty(&file)
            .map_err(|e| Error::caused(ErrorKind::InvalidInput, "a throttle file", e))?;
        text.push(b'\n');
        Medium::default().replace(path, &text)?;
        Ok(generation)
    }

    /// Back to what the shipper was started with.
    pub fn remove(path: &Path) -> Result<()> {
        Medium::default().remove(path)
    }
}

pub(crate) struct Throttle {
    started_with: Plan,
    file: PathBuf,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    plan: Plan,
    governor: Limit,
    now: InForce,
    /// The buckets were told.
    is_carried_out: bool,
    looked: Option<Instant>,
    /// Tells whether the file is still the one that was read.
    seen: Option<Stamp>,
    generation: u64,
    bytes: Bucket,
    ops: Bucket,
}

/// Inode, size, time of change: replaced files differ in the first.
type Stamp = (u64, u64, i64, i64);

impl Throttle {
    pub fn new(started_with: Plan, file: PathBuf) -> Throttle {
        let now = InForce { limit: Limit::NONE, why: Why::Nothing };
        let state = State {
            plan: started_with.clone(),
            governor: Limit::NONE,
            now,
            is_carried_out: false,
            looked: None,
            seen: None,
            generation: 0,
            bytes: Bucket::new(None, 0),
            ops: Bucket::new(None, 0),
        };
        let throttle =
            Throttle { started_with, file, began: Instant::now(), state: Mutex::new(state) };
        throttle.look();
        throttle
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// What the governor allows besides; the least counts.
    pub fn govern(&self, limit: Limit) {
        let mut state = self.lock();
        state.governor = limit;
        state.looked = None;
    }

    /// What is in force and why, and which file was taken; looks for changes when that
    /// was not done lately.
    pub fn look(&self) -> (InForce, String, u64) {
        let mut state = self.lock();
        self.refresh(&mut state);
        (state.now, self.reason(&state), state.generation)
    }

    fn refresh(&self, state: &mut State) {
        if state.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        state.looked = Some(Instant::now());
        let stamp = std::fs::metadata(&self.file).ok();
        let stamp = stamp.map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        if stamp != state.seen {
            state.seen = stamp;
            self.reload(state);
        }
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let now = state.plan.in_force(state.governor, unix_s);
        if now != state.now || !state.is_carried_out {
            (state.now, state.is_carried_out) = (now, true);
            let now_ns = self.now_ns();
            state.bytes.set(now.limit.bytes_per_s, now_ns);
            state.ops.set(now.limit.ops_per_s, now_ns);
            tracing::info!(limit = ?now.limit, "shipping rate: {}", self.reason(state));
        }
    }

    /// A file that cannot be used changes nothing.
    fn reload(&self, state: &mut State) {
        match ThrottleFile::load(&self.file) {
            Ok(Some(file)) => {
                state.plan = self.started_with.with(&file.overlay);
                state.generation = file.generation;
            }
            Ok(None) => {
                state.plan = self.started_with.clone();
                state.generation = 0;
            }
            Err(error) => tracing::error!("{error}; the limits stay as they are"),
        }
    }

    fn reason(&self, state: &State) -> String {
        match state.now.why {
            Why::Nothing => "no limit".to_owned(),
            Why::Base if state.generation > 0 => "set by towline throttle".to_owned(),
            Why::Base => "as configured".to_owned(),
            Why::Governor => "the governor spares the guests".to_owned(),
            Why::Window(at) => {
                let window = state.plan.windows.get(at).map(ToString::to_string);
                format!("window {} (UTC)", window.unwrap_or_default())
            }
        }
    }

    /// Largest piece to hand on at once: an eighth of a second's worth, so that a slow
    /// stream neither stands still nor comes in gusts.
    pub fn piece_bytes(&self) -> usize {
        let rate = self.lock().bytes.per_s();
        rate.map_or(usize::MAX, |rate| (rate / 8).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX) as usize)
    }

    /// Waits until so much may go, and counts it.
    pub async fn pass(&self, bytes: u64, ops: u64) {
        loop {
            let wait_ns = {
                let mut state = self.lock();
                self.refresh(&mut state);
                let now_ns = self.now_ns();
                let wait_ns = state.bytes.wait_ns(now_ns).max(state.ops.wait_ns(now_ns));
                if wait_ns == 0 {
                    state.bytes.take(bytes, now_ns);
                    state.ops.take(ops, now_ns);
                    return;
                }
                wait_ns
            };
            tokio::time::sleep(Duration::from_nanos(wait_ns).min(LOOK_EVERY)).await;
        }
    }
}

const PIECE_BYTES_MIN: u64 = 1 << 10;
const PIECE_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use towline_control::rate::Setting;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    fn limited(bytes_per_s: u64) -> Plan {
        let base = Limit { bytes_per_s: Some(bytes_per_s), ops_per_s: None };
        Plan { base, windows: Vec::new() }
    }

    #[test]
    fn what_passes_is_held_to_the_rate() {
        let dir = tempfile::tempdir().unwrap();
        let throttle = Throttle::new(limited(1 << 20), dir.path().join("none"));
        let began = Instant::now();
        block_on(async {
            for _ in 0..8 {
                throttle.pass(64 << 10, 1).await;
            }
        });
        // 100 KiB in the bucket, and the last piece goes into debt.
        let owed = (7.0 * 64.0 - 102.4) / 1024.0;
        assert!(began.elapsed().as_secs_f64() >= owed - 1e-3, "{:?}", began.elapsed());
    }

    #[test]
    fn a_changed_file_frees_those_that_wait_already() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("throttle.json");
        let throttle = Throttle::new(limited(1), file.clone());
        assert_eq!(throttle.look().1, "as configured");
        block_on(async {
            throttle.pass(1000, 1).await;
            let waiting = throttle.pass(1000, 1);
            let changing = async {
                let overlay = Overlay { bytes: Some(Setting::NoLimit), ..Overlay::default() };
                ThrottleFile::store(&file, overlay).unwrap()
            };
            // A thousand seconds, without the change.
            let ((), generation) = tokio::join!(waiting, changing);
            assert_eq!(throttle.look().2, generation);
        });
        assert_eq!(throttle.look().1, "no limit");
        ThrottleFile::remove(&file).unwrap();
        throttle.lock().looked = None;
        assert_eq!(throttle.look().0.limit.bytes_per_s, Some(1), "back to what it began with");
    }

    #[test]
    fn a_file_that_is_none_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("throttle.json");
        for text in ["", "{}", r#"{"version":9,"generation":1,"overlay":{}}"#] {
            std::fs::write(&file, text).unwrap();
            let throttle = Throttle::new(limited(5), file.clone());
            assert_eq!(throttle.look().0.limit.bytes_per_s, Some(5), "{text}");
            assert!(ThrottleFile::load(&file).is_err());
        }
    }

    #[test]
    fn the_governor_is_told_from_the_plan() {
        let dir = tempfile::tempdir().unwrap();
        let throttle = Throttle::new(limited(500), dir.path().join("none"));
        throttle.govern(Limit { bytes_per_s: Some(100), ops_per_s: None });
        let (now, reason, _) = throttle.look();
        assert_eq!((now.limit.bytes_per_s, now.why), (Some(100), Why::Governor));
        assert!(reason.contains("governor"));
        throttle.govern(Limit::NONE);
        assert_eq!(throttle.look().0.why, Why::Base);
    }
}
