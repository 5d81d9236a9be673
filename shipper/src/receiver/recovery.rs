//! Bringing the receiver back after anything: what staging holds, what to cut,
//! what was lost, and the redo (table in docs/formats/receiver.md).
//!
//! Staged batches are believed as far as the chain from `applied` holds.

use super::apply::{Apply, check_bounds};
use super::lacking::Lacking;
use super::marks::{self, Marks};
use super::medium::{Medium, Target, aligned};
use super::staging::{Cursor, Segment, Staging, list, read_batch, segment_path};
use super::state::{Books, Rollback, State};
use super::stream::Stream;
use super::target::TargetDisk;
use super::{Layout, Limits};
use crate::batch::{Batch, Keyring};
use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A bound receiver's parts, ready to go on.
pub struct Store {
    pub books: Arc<Books>,
    pub staging: Staging,
    pub apply: Apply,
    /// The stream after the last durable batch.
    pub durable: Stream,
    /// What the targets lack, though the stream says otherwise.
    pub lacking: Option<Lacking>,
}

/// What staging holds, as a scan found it.
#[derive(Debug, Default)]
pub struct Scan {
    pub segments: Vec<Segment>,
    pub cursor: Cursor,
    pub durable: Stream,
    /// Acknowledged batches are missing or damaged: what and where.
    pub damage: Option<String>,
}

/// What ended a segment's good part.
enum End {
    File,
    /// Not a batch, or not the next one.
    Bad(String),
}

/// Opens what is in the directory; `None` when this receiver is not bound yet.
/// Nothing of the targets is changed except by a rollback that was decided.
///
/// # Errors
/// [`ErrorKind::NotAuthorised`] when staging holds batches that were sealed with a key
/// that is not in `keys`: nothing was touched, and nothing is taken for damaged.
pub fn open(
    layout: &Layout,
    medium: &Medium,
    limits: &Limits,
    keys: &Keyring,
) -> Result<Option<Store>> {
    let Some(state) = super::state::load(&layout.state)? else { return Ok(None) };
    let targets = open_targets(&state, medium)?;
    let books = Books::loaded(&layout.state, medium.clone(), state.clone());
    let mut marks = load_marks(layout, medium, limits, &state)?;
    super::rewind::finish(&books, &mut marks, &targets, layout, medium)?;
    let state = books.get();
    if let Some(takeover) = &state.promoted {
        finish_takeover(&books, &mut marks, &targets, takeover.rollback)?;
        let mut staging = Staging::new(&layout.stage, medium.clone(), vec![], limits.segment());
        staging.clear()?;
        let parts = (staging, marks, targets);
        return Ok(Some(assemble(books, parts, Cursor::default(), medium, keys)));
    }
    let mut scan = scan(&layout.stage, &state, keys)?;
    let damage = scan.damage.take();
    let damaged = damage.is_some();
    if let Some(damage) = damage {
        lose_point(&books, &mut scan, damage)?;
    }
    settle_point(&books, &marks)?;
    let mut staging = Staging::new(&layout.stage, medium.clone(), scan.segments, limits.segment());
    if damaged {
        staging.clear()?;
    }
    let parts = (staging, marks, targets);
    let mut store = assemble(books, parts, scan.cursor, medium, keys);
    store.durable = scan.durable;
    let sizes: Vec<u64> = state.volumes.iter().map(|volume| volume.size_bytes).collect();
    store.lacking = Lacking::load(&layout.lacking, medium, &sizes)?;
    Ok(Some(store))
}

/// What a receiver's start does before it listens, and nothing else: brings the
/// targets to the end of the last durable batch. Answers where that is; `None`
/// when no group was ever received there.
pub fn recover(state_dir: &Path, keys: &Keyring) -> Result<Option<Stream>> {
    let layout = Layout::of(state_dir);
    if !layout.state.exists() {
        return Ok(None);
    }
    let _lock = super::server::lock(&layout)?;
    let store = open(&layout, &Medium::default(), &Limits::default(), keys)?;
    let Some(mut store) = store else { return Ok(None) };
    if store.books.get().promoted.is_none() {
        store.redo()?;
    }
    Ok(Some(store.apply.applied().clone()))
}

fn assemble(
    books: Arc<Books>,
    (staging, marks, targets): (Staging, Marks, Vec<Target>),
    cursor: Cursor,
    medium: &Medium,
    keys: &Keyring,
) -> Store {
    let reader = staging.reader(cursor);
    let durable = books.get().applied;
    let (medium, keys) = (medium.clone(), keys.clone());
    let apply = Apply::new(targets, marks, Arc::clone(&books), reader, medium, keys);
    Store { books, staging, apply, durable, lacking: None }
}

impl Store {
    /// The first store of a group: `state` durable, nothing received.
    pub fn create(
        layout: &Layout,
        medium: &Medium,
        limits: &Limits,
        state: State,
        targets: Vec<Target>,
        keys: &Keyring,
    ) -> Result<Store> {
        let mut marks = load_marks(layout, medium, limits, &state)?;
        marks.clear()?;
        let books = Books::create(&layout.state, medium.clone(), state)?;
        let staging = Staging::new(&layout.stage, medium.clone(), vec![], limits.segment());
        let parts = (staging, marks, targets);
        Ok(assemble(books, parts, Cursor::default(), medium, keys))
    }

    /// Applies everything that is durable.
    pub fn redo(&mut self) -> Result<()> {
        while self.apply.step()?.is_some() {}
        Ok(())
    }
}

fn load_marks(layout: &Layout, medium: &Medium, limits: &Limits, state: &State) -> Result<Marks> {
    let owner = marks::Owner {
        group: state.group_uuid,
        sizes: state.volumes.iter().map(|volume| volume.size_bytes).collect(),
        applied: &state.applied,
        durable: state.marks_durable,
    };
    Marks::load(&layout.marks, medium.clone(), limits.marks, owner)
}

pub fn open_targets(state: &State, medium: &Medium) -> Result<Vec<Target>> {
    let open = |record: &super::state::TargetRecord| {
        let disk = TargetDisk::open(&record.path)?;
        if disk.size_bytes() != record.size_bytes {
            let what = format!(
                "target {} at {} has {} bytes, but had {} when it was last used: put the right \
                 disk there",
                record.name,
                record.path.display(),
                disk.size_bytes(),
                record.size_bytes
            );
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Target::new(record.name.clone(), disk, medium.clone()))
    };
    state.volumes.iter().map(open).collect()
}

/// Rolls back if that was decided and not finished, then forgets the marks: from here on
/// the volumes belong to the guest.
pub fn finish_takeover(
    books: &Books,
    marks: &mut Marks,
    targets: &[Target],
    rollback: Rollback,
) -> Result<()> {
    if rollback == Rollback::Pending {
        let point = books.get().applied.point.map_or(0, |point| point.number);
        marks.roll_back(point, targets)?;
        books.update(|state| {
            if let Some(takeover) = &mut state.promoted {
                takeover.rollback = Rollback::Done;
            }
        })?;
    }
    marks.clear()
}

/// In a broken phase the way back to its point has to be there.
fn settle_point(books: &Books, marks: &Marks) -> Result<()> {
    let applied = books.get().applied;
    if applied.whole || applied.point.is_none() || marks.point(&applied).is_some() {
        return Ok(());
    }
    let what = "the undo log is missing or damaged: the last point is lost; the next one comes \
                when the resync is done";
    tracing::error!("{what}");
    books.update(|state| {
        state.applied.point = None;
        state.last_error = Some(what.to_owned());
    })
}

/// Batches that were acknowledged are gone: the chain goes on after the last good
/// one, but nothing is known of the disks any more.
fn lose_point(books: &Books, scan: &mut Scan, damage: String) -> Result<()> {
    tracing::error!("{damage}");
    let what = format!("{damage}: acknowledged batches are lost, everything is received again");
    let lost = scan.durable.lost();
    books.update(|state| {
        state.applied = lost.clone();
        state.last_error = Some(what);
    })?;
    scan.durable = lost;
    scan.segments.clear();
    scan.cursor = Cursor::default();
    Ok(())
}

/// Follows the chain through all segments. Changes nothing.
///
/// # Errors
/// [`ErrorKind::NotAuthorised`] for a batch whose key is not in `keys`: it may be sound.
pub fn scan(dir: &Path, state: &State, keys: &Keyring) -> Result<Scan> {
    let firsts = list(dir)?;
    let mut scan = Scan { durable: state.applied.clone(), ..Scan::default() };
    for (index, first) in firsts.iter().copied().enumerate() {
        let next_first = firsts.get(index + 1).copied();
        if first > scan.durable.number + 1 {
            scan.damage = Some(format!("{} does not follow", segment_path(dir, first).display()));
            break;
        }
        let end = scan_segment(dir, first, next_first, (state, keys), &mut scan)?;
        let followed = next_first.is_none_or(|next| next <= scan.durable.number + 1);
        if let (End::Bad(why), false) = (&end, followed) {
            scan.damage = Some(format!("{}: {why}", segment_path(dir, first).display()));
            break;
        }
        if let End::Bad(why) = end {
            tracing::info!(segment = first, "an unfinished write ends staging: {why}");
        }
    }
    Ok(scan)
}

/// Takes the batches of one segment that continue the chain; a segment that
/// starts at `next_first` overrules what lies here from that number on.
fn scan_segment(
    dir: &Path,
    first: u64,
    next_first: Option<u64>,
    (state, keys): (&State, &Keyring),
    scan: &mut Scan,
) -> Result<End> {
    let path = segment_path(dir, first);
    let failed = |e| Error::storage(format!("cannot read {}", path.display()), e);
    let file = File::open(&path).map_err(failed)?;
    let end = file.metadata().map_err(failed)?.len();
    let sizes: Vec<u64> = state.volumes.iter().map(|volume| volume.size_bytes).collect();
    let mut segment = Segment { first, last: first.saturating_sub(1), bytes: 0 };
    let mut outcome = End::File;
    let mut memory = Vec::new();
    while segment.bytes < end && next_first.is_none_or(|next| segment.last + 1 < next) {
        let bytes = match read_batch(&file, &path, segment.bytes, end, memory) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::Damaged => {
                outcome = End::Bad(e.to_string());
                break;
            }
            Err(e) => return Err(e),
        };
        let after = aligned(segment.bytes + bytes.len() as u64);
        let opened = match Batch::open(bytes, keys) {
            Ok(opened) => opened,
            Err(e) if e.kind() == ErrorKind::NotAuthorised => {
                let what = format!("{}: what is staged there", path.display());
                return Err(Error::caused(ErrorKind::NotAuthorised, what, e));
            }
            Err(e) => {
                outcome = End::Bad(e.to_string());
                break;
            }
        };
        match take(&opened, segment.last + 1, state, &sizes, &scan.durable) {
            Ok(Some(after)) => scan.durable = after,
            Ok(None) => {
                scan.cursor = Cursor { segment: first, offset: after };
            }
            Err(why) => {
                outcome = End::Bad(why);
                break;
            }
        }
        segment.last += 1;
        segment.bytes = after;
        memory = opened.into_bytes();
    }
    if segment.bytes > 0 {
        scan.segments.push(segment);
    }
    Ok(outcome)
}

/// The stream after the batch; `None` for one that is applied already.
fn take(
    batch: &Batch,
    number: u64,
    state: &State,
    sizes: &[u64],
    durable: &Stream,
) -> std::result::Result<Option<Stream>, String> {
    let view = batch.view();
    if view.number() != number {
        return Err(format!("batch {} lies where {number} belongs", view.number()));
    }
    if number <= state.applied.number {
        return Ok(None);
    }
    check_bounds(&view, sizes).map_err(|e| e.to_string())?;
    durable.follow(state.group_uuid, &view).map(Some).map_err(|refusal| refusal.message)
}
