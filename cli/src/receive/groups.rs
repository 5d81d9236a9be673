//! Several groups in one receiver, behind one address: each has threads, state folder and memory of
//! its own; one that fails is started again by itself, and the others do not notice.

use super::{Place, end, lock, samples, start};
use crate::config::{ReceiveConfig, ReceiveGroups};
use crate::daemon::Daemon;
use crate::exit::{Exit, sentence};
use crate::metrics::{self, Sample};
use crate::restart::Restart;
use crate::ship::security;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use towline_block::GroupName;
use towline_shipper::receiver::{Counters, Door, Layout, note};

/// How often it is looked whether a group has failed, or is to be started again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the threads of all groups share.
struct Host {
    door: Option<Door>,
    stopping: (Mutex<bool>, Condvar),
    running: Mutex<BTreeMap<GroupName, Known>>,
}

/// What metrics show of a running group.
struct Known {
    counters: Arc<Counters>,
    place: Arc<Place>,
}

pub fn run(groups: &ReceiveGroups) -> anyhow::Result<Exit> {
    let configs = groups.configs()?;
    let daemon = Daemon::prepare("receive")?;
    let security = security(groups.pki.clone(), groups.insecure_loopback);
    let door = groups.listen.as_deref().map(|at| Door::open(at, &security, Arc::default()));
    let mut door = door.transpose()?;
    if let Some(door) = &mut door {
        let named = configs.iter().filter_map(|config| config.group.as_ref());
        named.for_each(|group| door.close_room(group, "it is being started"));
        door.start()?;
    }
    let listening = door.as_ref().map(|door| format!("listening on {}, ", door.address()));
    let (stopping, running) = Default::default();
    let host = Arc::new(Host { door, stopping, running });
    let names: Vec<String> = configs.iter().map(ReceiveConfig::name).collect();
    let (tried, attempts) = mpsc::channel();
    let mut threads = Vec::new();
    for config in configs {
        let (host, tried) = (Arc::clone(&host), tried.clone());
        let thread = std::thread::Builder::new().name(format!("group-{}", config.name()));
        threads.push(thread.spawn(move || host.tend(&config, tried))?);
    }
    drop(tried);
    if let Some(address) = groups.metrics {
        let host = Arc::clone(&host);
        metrics::serve(address, move || host.scrape())?;
    }
    // The channel closes when each has been started once, or has told why not.
    let _ = attempts.recv();
    let listening = listening.unwrap_or_default();
    daemon.ready(&format!("{listening}groups {}", names.join(", ")));
    daemon.wait();
    *lock(&host.stopping.0) = true;
    host.stopping.1.notify_all();
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a group's thread panicked");
        }
    }
    Ok(Exit::Ok)
}

impl Host {
    /// Runs one group to the end of the process. `tried` is dropped after the first attempt.
    fn tend(&self, config: &ReceiveConfig, tried: mpsc::Sender<()>) {
        let Some(group) = config.group.clone() else { return };
        let mut tried = Some(tried);
        let mut restart = Restart::default();
        loop {
            let started = start(config.clone(), self.door.as_ref());
            let why = match started {
                Ok((receiver, place)) => {
                    let counters = Arc::clone(receiver.counters());
                    let known = Known { counters, place: Arc::clone(&place) };
                    lock(&self.running).insert(group.clone(), known);
                    drop(tried.take());
                    while !self.is_stopping(LOOK_EVERY) && !receiver.has_failed() {}
                    lock(&self.running).remove(&group);
                    if let Err(error) = end(receiver, &place) {
                        tracing::error!(%group, "{}", sentence(&error));
                    }
                    "a thread of the receiver has ended by a fault of its own".to_owned()
                }
                Err(error) => sentence(&error),
            };
            if self.is_stopping(Duration::ZERO) {
                return;
            }
            if restart.failed(Instant::now(), &why) {
                tracing::error!(%group, "{why}; trying again");
                note(&Layout::of(&config.state), Some(&why));
            }
            if let Some(door) = &self.door {
                door.close_room(&group, why);
            }
            drop(tried.take());
            while !restart.is_due(Instant::now()) {
                if self.is_stopping(LOOK_EVERY) {
                    return;
                }
            }
        }
    }

    /// Waits so long for the end of the process.
    fn is_stopping(&self, wait: Duration) -> bool {
        let stopping = lock(&self.stopping.0);
        let waited = self.stopping.1.wait_timeout_while(stopping, wait, |stopping| !*stopping);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// All groups' samples, those of one name together.
    fn scrape(&self) -> Vec<Sample> {
        let mut all = Vec::new();
        for (group, Known { counters, place }) in &*lock(&self.running) {
            let of = samples(counters, place).into_iter();
            all.extend(of.map(|sample| sample.with("group", group.as_str())));
        }
        all.sort_by_key(|sample| sample.name);
        all
    }
}
