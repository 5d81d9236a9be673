//! Bringing the receiver back after anything: what staging holds, what to cut,
//! what was lost, and the redo (table in docs/formats/receiver.md).
//!
//! Staged batches are believed as far as the chain from `applied` holds.

use super::apply::Apply;
use super::lacking::Lacking;
use super::marks::{self, Marks};
use super::medium::{Medium, Target};
use super::scan::{Scan, Scanner};
use super::staging::{Cursor, Staging};
use super::state::{Books, Rollback, State};
use super::stream::Stream;
use super::target::TargetDisk;
use super::{Layout, Limits};
use crate::batch::Keyring;
use crate::error::{Error, ErrorKind, Result};
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

/// A store that is bound, of which is not known yet what staging holds.
pub struct Opening {
    store: Store,
    layout: Layout,
    medium: Medium,
    redone: bool,
}

/// Opens what is in the directory; `None` when this receiver is not bound yet.
/// Nothing of the targets is changed except by a rollback that was decided.
///
/// # Errors
/// As [`begin`] and [`Opening::finish`].
pub fn open(
    layout: &Layout,
    medium: &Medium,
    limits: &Limits,
    keys: &Keyring,
) -> Result<Option<Store>> {
    begin(layout, medium, limits, keys)?.map(Opening::finish).transpose()
}

/// As [`open`], up to where staging is to be read.
///
/// # Errors
/// When a file or a target cannot be opened, or is not what it was.
pub fn begin(
    layout: &Layout,
    medium: &Medium,
    limits: &Limits,
    keys: &Keyring,
) -> Result<Option<Opening>> {
    let Some(state) = super::state::load(&layout.state)? else { return Ok(None) };
    let targets = open_targets(&state, medium)?;
    let books = Books::loaded(&layout.state, medium.clone(), state.clone());
    let mut marks = load_marks(layout, medium, limits, &state)?;
    super::rewind::finish(&books, &mut marks, &targets, layout, medium)?;
    let mut staging = Staging::new(&layout.stage, medium.clone(), limits.segment());
    let scanner = match &books.get().promoted {
        Some(takeover) => {
            finish_takeover(&books, &mut marks, &targets, takeover.rollback)?;
            staging.clear()?;
            None
        }
        None => {
            settle_point(&books, &marks)?;
            Some(Scanner::new(&layout.stage, &books.get(), keys)?)
        }
    };
    let mut store = assemble(books, (staging, marks, targets), medium, keys);
    store.apply.scan(scanner);
    let (layout, medium) = (layout.clone(), medium.clone());
    Ok(Some(Opening { store, layout, medium, redone: false }))
}

impl Opening {
    pub fn apply(&mut self) -> &mut Apply {
        &mut self.store.apply
    }

    /// Applies what staging holds while it is read: each batch is read and checked once.
    ///
    /// # Errors
    /// Of the targets and of staging; what is not applied then is so later.
    pub fn redo(&mut self) -> Result<()> {
        if self.store.books.get().promoted.is_some() {
            return Ok(());
        }
        self.redone = true;
        self.store.redo()
    }

    /// Reads on to the end of staging, and loses the point if something of it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::NotAuthorised`] when staging holds batches that were sealed with a key
    /// that is not given: nothing is taken for damaged.
    pub fn finish(self) -> Result<Store> {
        let Opening { mut store, layout, medium, redone } = self;
        let Some(scanner) = store.apply.end_scan() else { return Ok(store) };
        let mut scan = scanner.finish()?;
        if let Some(damage) = scan.damage.take() {
            lose_point(&store.books, &mut scan, damage)?;
            store.staging.clear()?;
            store.apply.start_at(scan.durable.clone());
        }
        store.staging.take_over(scan.segments);
        store.apply.read_from(store.staging.reader(scan.cursor));
        if redone && let Err(error) = store.apply.remove_spent() {
            tracing::warn!(%error, "what is applied stays in staging until the next batch is applied");
        }
        store.durable = scan.durable;
        let state = store.books.get();
        let sizes: Vec<u64> = state.volumes.iter().map(|volume| volume.size_bytes).collect();
        store.lacking = Lacking::load(&layout.lacking, &medium, &sizes)?;
        Ok(store)
    }
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
    open_and_redo(&layout, &Medium::default(), &Limits::default(), keys)
}

/// As [`recover`], in a directory that is locked.
pub fn open_and_redo(
    layout: &Layout,
    medium: &Medium,
    limits: &Limits,
    keys: &Keyring,
) -> Result<Option<Stream>> {
    let Some(mut opening) = begin(layout, medium, limits, keys)? else { return Ok(None) };
    let redone = opening.redo();
    let store = opening.finish()?;
    redone.map(|()| Some(store.apply.applied().clone()))
}

fn assemble(
    books: Arc<Books>,
    (staging, marks, targets): (Staging, Marks, Vec<Target>),
    medium: &Medium,
    keys: &Keyring,
) -> Store {
    let reader = staging.reader(Cursor::default());
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
        let staging = Staging::new(&layout.stage, medium.clone(), limits.segment());
        Ok(assemble(books, (staging, marks, targets), medium, keys))
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
        let disk = TargetDisk::open(&record.path).map_err(|error| {
            let error = error.of(format_args!("target {}", record.name));
            // Its server may come.
            match (super::target::is_remote(&record.path), error.kind()) {
                (true, ErrorKind::Storage) => Error::new(ErrorKind::Unreachable, error.to_string()),
                _ => error,
            }
        })?;
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
