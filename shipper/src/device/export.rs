//! An export under way, as its owner sees it.

use crate::error::{Error, Result};
use crate::ids::SetId;
use crate::receiver::Stream;
use crate::source::{ShipConfig, Shipper};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where an export goes.
#[derive(Clone, Debug)]
pub struct ExportPlan {
    /// A folder of each device, that are there.
    pub to: Vec<PathBuf>,
    pub pack_bytes: u64,
    /// What the operator says that it will take, in place of what the volumes hold.
    pub expect: Option<u64>,
    /// Whose key signs the manifest; `None`: it is not signed.
    pub pki: Option<PathBuf>,
}

/// A device as the export uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderView {
    /// Where it is, or was last if that is known.
    pub dir: Option<PathBuf>,
    pub device: u32,
    pub packs: usize,
    pub bytes: u64,
    /// It has the last manifest. False while it is not there, but if it is known to be
    /// complete.
    pub up_to_date: bool,
}

/// What there is by now.
#[derive(Clone, Debug, Default)]
pub struct ExportView {
    pub set: Option<SetId>,
    /// Those in use, and those that are not but have packs.
    pub folders: Vec<FolderView>,
    pub packs: usize,
    pub bytes: u64,
    /// The stream after the last closed pack.
    pub after: Stream,
}

#[derive(Default)]
pub(crate) struct Shared {
    view: Mutex<ExportView>,
    ended: Mutex<Option<Result<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn show(&self, view: ExportView) {
        *lock(&self.view) = view;
    }

    pub fn end(&self, outcome: Result<()>) {
        *lock(&self.ended) = Some(outcome);
    }
}

/// A running export.
pub struct Exporter {
    shipper: Shipper,
    shared: Arc<Shared>,
}

impl Exporter {
    /// Starts exporting; returns at once. `config.to` is not looked at.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Busy`] when a shipper runs for the group.
    pub fn start(config: ShipConfig, plan: ExportPlan) -> Result<Exporter> {
        let shared = Arc::<Shared>::default();
        let shipper = Shipper::export(config, plan, shared.clone())?;
        Ok(Exporter { shipper, shared })
    }

    pub fn view(&self) -> ExportView {
        lock(&self.shared.view).clone()
    }

    /// What there is at its end, once it has ended.
    pub fn ended(&self) -> Option<Result<ExportView>> {
        if let Some(outcome) = lock(&self.shared.ended).take() {
            return Some(outcome.map(|()| self.view()));
        }
        let why = self.shipper.ended()?;
        Some(Err(Error::new(crate::ErrorKind::Refused, why)))
    }

    /// Orderly stop: the pack in work is closed first, so that nothing is read again.
    /// Answers what there is then.
    pub fn stop(self) -> ExportView {
        self.shipper.stop();
        lock(&self.shared.view).clone()
    }
}
