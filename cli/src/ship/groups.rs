//! Several groups in one shipper: each has threads and state of its own; one that fails is started
//! again by itself, and the others do not notice.

use super::{LOOK_EVERY, NICE_DEFAULT, check_identity, link, samples, start};
use crate::config::{ShipConfig, ShipGroups};
use crate::daemon::Daemon;
use crate::exit::{Exit, sentence};
use crate::metrics::{self, Sample};
use crate::restart::Restart;
use std::time::Instant;
use towline_block::sys::give_way;
use towline_journal::progress::Progress as Page;
use towline_journal::state::GroupDir;
use towline_shipper::ErrorKind;
use towline_shipper::source::{Link, Shipper};

struct Slot {
    config: ShipConfig,
    shipper: Option<Shipper>,
    restart: Restart,
}

pub fn run(groups: &ShipGroups) -> anyhow::Result<Exit> {
    let configs = groups.configs()?;
    // Before the first thread is started, which inherits it.
    if let Err(error) = give_way(groups.nice.unwrap_or(NICE_DEFAULT).into()) {
        tracing::warn!(%error, "the shipper runs at the priority of everything else");
    }
    let daemon = Daemon::prepare("ship")?;
    let Some(link) = configs.first().map(link) else { return Ok(Exit::Ok) };
    let new = |config| Slot { config, shipper: None, restart: Restart::default() };
    let mut slots: Vec<Slot> = configs.into_iter().map(new).collect();
    slots.iter_mut().for_each(|slot| slot.tend(&link));
    if let Some(address) = groups.metrics {
        let dirs: Vec<_> = slots.iter().map(|slot| (slot.name(), slot.dir())).collect();
        metrics::serve(address, move || scrape(&dirs))?;
    }
    let names: Vec<String> = slots.iter().map(Slot::name).collect();
    daemon.ready(&format!("groups {}", names.join(", ")));
    while !daemon.wait_for(LOOK_EVERY) {
        slots.iter_mut().for_each(|slot| slot.tend(&link));
    }
    slots.into_iter().filter_map(|slot| slot.shipper).for_each(Shipper::stop);
    Ok(Exit::Ok)
}

/// All groups' samples, those of one name together.
fn scrape(dirs: &[(String, GroupDir)]) -> Vec<Sample> {
    let mut all = Vec::new();
    for (name, dir) in dirs {
        if let Ok(Some(page)) = Page::view(&dir.progress_path()) {
            all.extend(samples(&page, name));
        }
    }
    all.sort_by_key(|sample| sample.name);
    all
}

impl Slot {
    fn name(&self) -> String {
        self.config.group.to_string()
    }

    fn dir(&self) -> GroupDir {
        GroupDir::of(&self.config.state, &self.config.group)
    }

    /// Starts it where that is due.
    fn tend(&mut self, link: &Link) {
        let now = Instant::now();
        if let Some(failed) = self.shipper.take_if(|shipper| shipper.has_failed()) {
            failed.stop();
            self.failed(now, "a thread of the shipper has ended by a fault of its own", true);
        }
        if self.shipper.is_some() || !self.restart.is_due(now) {
            return;
        }
        match check_identity(&self.config).and_then(|()| start(&self.config, link.clone())) {
            Ok(shipper) => self.shipper = Some(shipper),
            Err(error) => {
                let shipper = error.downcast_ref::<towline_shipper::Error>();
                // Another shipper's figures are its own.
                let is_ours = shipper.is_none_or(|error| error.kind() != ErrorKind::Busy);
                self.failed(now, &sentence(&error), is_ours);
            }
        }
    }

    fn failed(&mut self, now: Instant, why: &str, is_ours: bool) {
        if self.restart.failed(now, why) {
            tracing::error!(group = %self.config.group, "{why}; trying again");
        }
        if is_ours
            && self.dir().create().is_ok()
            && let Ok(page) = Page::open(&self.dir().progress_path())
        {
            page.set_error(why);
        }
    }
}
