//! The modelled world and its scheduler: which steps are possible, which one is taken, and
//! which fault strikes. Single-threaded; everything follows from the seed.

use crate::activity::MapFile;
use crate::disk::{Content, Disk, VOLUMES};
use crate::faults::{Config, Pace};
use crate::guest::{Guest, Request, script};
use crate::ledger::{History, Ledger};
use crate::proxy::{Life, Link, Op, Proxy, Req, SavedMap, StateFile};
use crate::receiver::{Receiver, Store};
use crate::ring::{Pos, Ring};
use crate::rng::Rng;
use crate::rules::Rules;
use crate::shipper::{ShipStep, Shipper};
use crate::spill::Spill;
use crate::wire::{Conn, Durable};
use std::collections::VecDeque;

/// The three daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Proxy,
    Shipper,
    Receiver,
}

impl Process {
    pub const ALL: [Process; 3] = [Process::Proxy, Process::Shipper, Process::Receiver];
}

/// One possible step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Guest(usize),
    Volume(usize),
    Start,
    Link,
    StaleLink,
    Heal,
    Activity,
    Spill,
    /// A killed proxy's last write ends.
    Zombie,
    Ship(ShipStep),
    ToReceiver(u64),
    ToShipper(u64),
    Sync,
    Apply,
    Decide,
    Restart(Process),
}

impl Act {
    /// Steps of one class share a weight, so that in some runs the network is slow, in others
    /// the receiver, and so on.
    fn class(self) -> usize {
        match self {
            Act::Guest(_) => 0,
            Act::Volume(_) | Act::Zombie => 1,
            Act::Start | Act::Restart(_) => 2,
            Act::Link | Act::StaleLink => 3,
            Act::Heal => 4,
            Act::Ship(ShipStep::AskClaim | ShipStep::Read | ShipStep::SendPart) => 5,
            Act::Ship(_) => 6,
            Act::ToReceiver(_) | Act::ToShipper(_) => 7,
            Act::Sync => 8,
            Act::Apply | Act::Decide => 9,
            Act::Activity => 10,
            Act::Spill => 11,
        }
    }
}

const CLASSES: usize = 12;
/// Classes without the last, which is the spill's.
const CLASSES_OF_ALL: usize = 11;

pub struct World {
    pub rules: Rules,
    pub config: Config,
    pub rng: Rng,
    pub now: u64,
    pub source: Disk,
    pub ring: Option<Ring>,
    pub state: StateFile,
    pub saved: Option<SavedMap>,
    pub map_file: MapFile,
    pub spill: Spill,
    /// Rises with every boot of the source's machine.
    pub boot: u64,
    /// Writes of killed proxies that the kernel has not ended yet.
    pub zombies: Vec<Zombie>,
    /// The source was changed while no proxy ran.
    pub changed: bool,
    /// A ring that is not yet the group's.
    pub prepared: Option<Ring>,
    /// The incarnation whose spill comes first then.
    pub prepared_history: Option<u32>,
    /// The operator has seen the alarm of an invalid map.
    pub resync_asked: bool,
    pub proxy: Proxy,
    pub link: Option<Link>,
    pub shipper: Shipper,
    /// Survives the shipper, in its page of counters.
    pub stream_bytes: u64,
    pub conns: Vec<Conn>,
    pub receiver: Receiver,
    pub guests: [Guest; VOLUMES],
    pub ledger: Ledger,
    pub history: History,
    /// Gives out ids of sessions and attempts.
    pub next_id: u64,
    /// Faults still strike.
    pub faulty: bool,
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
    /// The receiver was set back, so figures about what it once had do not bind.
    pub set_back: bool,
    /// An earlier state of the receiver's disks, to set it back to.
    pub earlier: Option<Store>,
    pub stopping: bool,
    pub seen: Seen,
    /// Steps of this class do not happen until then.
    pub stalled: Option<(usize, u64)>,
    /// Requests that a dead shipper left unread in the proxy's socket.
    pub stale: VecDeque<Req>,
    weights: [usize; CLASSES],
    acts: Vec<Act>,
}

#[derive(Clone, Copy, Debug)]
pub struct Zombie {
    pub at: Pos,
    pub record: u64,
    pub cell: usize,
    pub value: u32,
}

/// What the checks remember from step to step.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub checked: Option<(u64, u64)>,
    pub point: Option<Pos>,
    pub durable: Durable,
    pub sealed: Option<u64>,
    /// The disk has changed what was written to the spill.
    pub spill_damaged: bool,
    /// Records shipped from the history of a lost ring, and from the spill.
    pub shipped: [u64; 2],
    /// Answers that the journal's durability stands behind, and late ones.
    pub durable_answers: [u64; 2],
    pub marks: u64,
    /// For coverage: how often interesting things happened.
    pub points: u64,
    /// Verdicts: equal, differing.
    pub verdicts: [u64; 2],
    /// Blocks that the loss of a ring did not make suspect.
    pub spared: u64,
    /// Blocks of which only parts were sent.
    pub parts: u64,
}

/// Weights of the classes for a pace.
fn set_pace(weights: &mut [usize; CLASSES], pace: Pace) {
    let class = Act::class;
    match pace {
        Pace::Any => {}
        // One request in many steps of the others.
        Pace::IdleGuests | Pace::SlowState => {
            *weights = weights.map(|weight| 20 * weight);
            weights[class(Act::Guest(0))] = 1;
            if pace == Pace::SlowState {
                weights[class(Act::Activity)] = 10;
            }
        }
        Pace::SlowTarget => {
            *weights = [40; CLASSES];
            weights[class(Act::Guest(0))] = 1;
            for act in [Act::Ship(ShipStep::Cut), Act::ToReceiver(0), Act::Sync, Act::Apply] {
                weights[class(act)] = 3;
            }
        }
        Pace::SlowAppender => {
            *weights = [27; CLASSES];
            weights[class(Act::Volume(0))] = 1;
            weights[class(Act::Heal)] = 1;
        }
    }
}

impl World {
    pub fn new(config: Config, seed: u64, traced: bool) -> World {
        let mut rng = Rng::new(seed);
        let mut value = 0;
        let mut guest = |volume| Guest {
            script: script(volume, config.requests, &mut rng, &mut value),
            ..Guest::default()
        };
        let guests = [guest(0), guest(1)];
        let mut weights = [0; CLASSES];
        weights[..CLASSES_OF_ALL].fill_with(|| [1, 3, 9, 27][rng.below(4)]);
        weights[CLASSES_OF_ALL] = [1, 3, 9, 27][(seed >> 3 & 3) as usize];
        set_pace(&mut weights, config.pace);
        World {
            rules: config.rules,
            rng,
            now: 0,
            source: Disk::default(),
            ring: None,
            state: StateFile::default(),
            saved: None,
            map_file: MapFile::default(),
            spill: Spill::default(),
            boot: 0,
            zombies: Vec::new(),
            changed: false,
            prepared: None,
            prepared_history: None,
            resync_asked: false,
            proxy: Proxy::dead(),
            link: None,
            shipper: Shipper::dead(),
            stream_bytes: 0,
            conns: Vec::new(),
            receiver: Receiver::default(),
            guests,
            ledger: Ledger::default(),
            history: History::default(),
            next_id: 0,
            faulty: true,
            violation: None,
            trace: traced.then(Vec::new),
            set_back: false,
            earlier: None,
            stopping: false,
            seen: Seen::default(),
            stalled: None,
            stale: VecDeque::new(),
            weights,
            acts: Vec::new(),
            config,
        }
    }

    pub fn ring_mut(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("a serving proxy has a ring")
    }

    /// A line of the trace; made only when somebody will read it.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:5} {}", self.now, line()));
        }
    }

    pub fn violate(&mut self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub fn is_alive(&self, process: Process) -> bool {
        match process {
            Process::Proxy => self.proxy.life != Life::Dead,
            Process::Shipper => self.shipper.alive,
            Process::Receiver => self.receiver.alive,
        }
    }

    pub fn kill(&mut self, process: Process) {
        if !self.is_alive(process) {
            return;
        }
        match process {
            Process::Proxy => self.kill_proxy(),
            Process::Shipper => self.kill_shipper(),
            Process::Receiver => self.kill_receiver(),
        }
    }

    /// Takes one step, chosen by the seed. False when nothing can move.
    pub fn step(&mut self) -> bool {
        self.now += 1;
        self.timers();
        let mut acts = std::mem::take(&mut self.acts);
        acts.clear();
        self.possible(&mut acts);
        if let Some((class, until)) = self.stalled {
            acts.retain(|act| act.class() != class);
            self.stalled = (self.now < until).then_some((class, until));
        }
        let weight = |act: &Act| if self.faulty { self.weights[act.class()] } else { 1 };
        let total: usize = acts.iter().map(weight).sum();
        let chosen = (total > 0).then(|| {
            let mut at = self.rng.clone().below(total);
            *acts
                .iter()
                .find(|act| {
                    let found = at < weight(act);
                    at = at.saturating_sub(weight(act));
                    found
                })
                .expect("the weights sum to the total")
        });
        self.rng.next();
        self.acts = acts;
        let Some(act) = chosen else { return false };
        self.take(act);
        true
    }

    fn possible(&self, acts: &mut Vec<Act>) {
        for volume in 0..VOLUMES {
            if self.guest_is_ready(volume) {
                acts.push(Act::Guest(volume));
            }
            if self.volume_is_ready(volume) {
                acts.push(Act::Volume(volume));
            }
        }
        let waits_for_owner = self.rules.owner_fence && !self.zombies.is_empty();
        if matches!(self.proxy.life, Life::Starting(_)) && !waits_for_owner {
            acts.push(Act::Start);
        }
        if self.link_is_ready() {
            acts.push(Act::Link);
        }
        if self.stale_link_is_ready() {
            acts.push(Act::StaleLink);
        }
        if self.activity_is_ready() {
            acts.push(Act::Activity);
        }
        if self.persister_is_ready() {
            acts.push(Act::Spill);
        }
        if !self.zombies.is_empty() {
            acts.push(Act::Zombie);
        }
        if self.heal_is_ready() {
            acts.push(Act::Heal);
        }
        let mut steps = Vec::new();
        self.ship_steps(&mut steps);
        acts.extend(steps.into_iter().map(Act::Ship));
        for conn in &self.conns {
            if self.receiver.alive && !conn.receiver_gone && !conn.to_receiver.is_empty() {
                acts.push(Act::ToReceiver(conn.id));
            }
            let gone = conn.receiver_gone && conn.to_shipper.is_empty();
            if conn.id == self.shipper.conn && (gone || !conn.to_shipper.is_empty()) {
                acts.push(Act::ToShipper(conn.id));
            }
        }
        if self.needs_sync() {
            acts.push(Act::Sync);
        }
        if self.can_apply() {
            acts.push(Act::Apply);
        }
        if self.can_decide() {
            acts.push(Act::Decide);
        }
        if !self.stopping {
            let dead = Process::ALL.into_iter().filter(|p| !self.is_alive(*p));
            acts.extend(dead.map(Act::Restart));
        }
    }

    fn take(&mut self, act: Act) {
        match act {
            Act::Guest(volume) => self.step_guest(volume),
            Act::Volume(volume) => self.step_volume(volume),
            Act::Start => {
                if let Life::Starting(start) = self.proxy.life {
                    self.step_start(start);
                }
            }
            Act::Link => self.step_link(),
            Act::StaleLink => self.step_stale_link(),
            Act::Heal => self.step_heal(),
            Act::Activity => self.step_activity(),
            Act::Spill => self.step_persister(),
            Act::Zombie => {
                self.land_zombie();
            }
            Act::Ship(step) => self.step_shipper(step),
            Act::ToReceiver(id) => {
                let conn = self.conns.iter_mut().find(|c| c.id == id);
                if let Some(message) = conn.and_then(|c| c.to_receiver.pop_front()) {
                    self.receiver_received(id, message);
                }
                self.conns.retain(|c| !c.is_over() || c.id == self.shipper.conn);
            }
            Act::ToShipper(id) => {
                let conn = self.conns.iter_mut().find(|c| c.id == id);
                match conn.and_then(|c| c.to_shipper.pop_front()) {
                    Some(message) => self.shipper_received(message),
                    None => self.drop_net(),
                }
            }
            Act::Sync => self.sync_and_ack(),
            Act::Apply => self.step_apply(),
            Act::Decide => self.decide(),
            Act::Restart(process) => self.restart(process),
        }
    }

    fn restart(&mut self, process: Process) {
        self.note(|| format!("start {process:?}"));
        match process {
            Process::Proxy => self.proxy.life = Life::Starting(crate::proxy::Start::Look),
            Process::Shipper => self.shipper.alive = true,
            Process::Receiver => self.receiver.alive = true,
        }
    }

    /// A class of steps, chosen by the seed, does not happen for a while.
    pub fn stall(&mut self) {
        let all = self.config.spill.is_none();
        let class = self.rng.below(if all { CLASSES_OF_ALL } else { CLASSES });
        let until = self.now + 1 + self.rng.below(120) as u64;
        self.note(|| format!("STALL of class {class} until {until}"));
        self.stalled = Some((class, until));
    }

    /// The proxy's own deadline for a hold, which needs nobody's help.
    fn timers(&mut self) {
        if let Some(held) = self.proxy.held
            && self.now >= held.until
            && !matches!(self.proxy.link_op, Some(crate::proxy::LinkOp::Seal { .. }))
        {
            self.note(|| "the proxy lifts the hold at its deadline".into());
            self.proxy.held = None;
        }
        if !self.rules.seal_ends_by_decision && self.shipper.cutover.is_none() {
            self.state.seal = None;
        }
    }

    /// The oldest write of a killed proxy that is still under way ends. False: there is none.
    pub fn land_zombie(&mut self) -> bool {
        if self.zombies.is_empty() {
            return false;
        }
        let Zombie { at, record, cell, value } = self.zombies.remove(0);
        self.note(|| format!("a killed proxy's write of {value} to cell {cell} ends"));
        self.history.wrote(at, record, cell, value);
        self.source.write(cell, value);
        true
    }

    fn at_target(&self) -> bool {
        self.receiver.alive && self.receiver.store.promoted()
    }

    fn guest_is_ready(&self, volume: usize) -> bool {
        let guest = &self.guests[volume];
        if guest.is_done() {
            return false;
        }
        if self.at_target() {
            return !guest.sent;
        }
        let serving = self.proxy.life == Life::Serving && self.state.seal.is_none();
        serving && !guest.sent && self.proxy.ops[volume].is_none() && !self.stopping
    }

    fn step_guest(&mut self, volume: usize) {
        let guest = &mut self.guests[volume];
        let next = guest.current.take().or_else(|| guest.script.pop_front());
        let Some(request) = next else { return };
        self.note(|| format!("guest {volume}: {request:?}"));
        let values = request.values();
        self.ledger.submitted(&values);
        if self.at_target() {
            for (cell, value) in &values {
                self.receiver.store.target.now[*cell] = *value;
            }
            if request == Request::Flush {
                self.receiver.store.target.flush();
            }
            self.ledger.acked(&values);
            return;
        }
        let guest = &mut self.guests[volume];
        guest.sent = true;
        guest.current = Some(request.clone());
        self.proxy.ops[volume] = Some(Op::new(request));
    }

    pub fn source_write_fails(&mut self) -> bool {
        self.faulty && self.config.fail_write > 0 && self.rng.chance(self.config.fail_write)
    }

    pub fn target(&self) -> &Content {
        &self.receiver.store.target.now
    }
}
