//! What goes wrong in a run, and when.

use crate::proxy::{Life, LinkOp};
use crate::rng::Rng;
use crate::rules::Rules;
use crate::world::{Process, World};
use towline_journal::Durability;

/// Values that no guest has written.
const FOREIGN: u32 = 1 << 30;

/// Of a thousand steps, how many bring this fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRates {
    pub kill_proxy: usize,
    pub kill_shipper: usize,
    pub kill_receiver: usize,
    /// The connection breaks; what was under way is partly lost.
    pub net_break: usize,
    /// A batch arrives a second time, perhaps behind later ones.
    pub net_repeat: usize,
    pub source_power: usize,
    pub receiver_power: usize,
    pub orderly_stop: usize,
    pub set_back: usize,
    pub cutover: usize,
    /// The operator aborts a running cutover.
    pub abort: usize,
    /// Something stands still for a while: a stopped process, a slow disk, a full line.
    pub stall: usize,
    /// The ring is gone, and nothing else.
    pub ring_loss: usize,
    /// The state disk changes a span of the spill.
    pub damage_spill: usize,
    /// Somebody changes the source while no proxy runs.
    pub change_source: usize,
    /// The operator marks a point.
    pub mark: usize,
}

impl FaultRates {
    /// Many cutovers, with whatever stands still in the middle of them.
    const CUTOVERS: FaultRates =
        FaultRates { cutover: 40, abort: 3, stall: 30, kill_proxy: 3, ..FaultRates::NONE };
    /// The same with a receiver whose disks are put back before the seal.
    const CUTOVERS_SET_BACK: FaultRates = FaultRates { set_back: 10, ..FaultRates::CUTOVERS };
    /// Proxies that die between any two stores.
    const PROXIES: FaultRates = FaultRates { kill_proxy: 30, stall: 20, ..FaultRates::NONE };
    /// Connections that break and messages that come again.
    const NETWORKS: FaultRates =
        FaultRates { net_break: 15, net_repeat: 40, stall: 10, ..FaultRates::NONE };
    /// Power losses of the source's machine, with state disks that stand still.
    const POWER: FaultRates = FaultRates {
        source_power: 12,
        kill_proxy: 8,
        stall: 12,
        set_back: 3,
        net_break: 3,
        ..FaultRates::NONE
    };
    const NONE: FaultRates = FaultRates {
        kill_proxy: 0,
        kill_shipper: 0,
        kill_receiver: 0,
        net_break: 0,
        net_repeat: 0,
        source_power: 0,
        receiver_power: 0,
        orderly_stop: 0,
        set_back: 0,
        cutover: 0,
        abort: 0,
        stall: 0,
        ring_loss: 0,
        damage_spill: 0,
        change_source: 0,
        mark: 0,
    };

    /// One theme, or each kind of fault left out, rare or frequent, as the seed wants it.
    pub fn from_seed(rng: &mut Rng) -> FaultRates {
        match rng.below(8) {
            0 => return FaultRates::CUTOVERS,
            1 => return FaultRates::CUTOVERS_SET_BACK,
            2 => return FaultRates::PROXIES,
            3 => return FaultRates::NETWORKS,
            _ => {}
        }
        let mut rate = |rare: usize| [0, rare, 4 * rare][rng.below(3)];
        FaultRates {
            kill_proxy: rate(5),
            kill_shipper: rate(5),
            kill_receiver: rate(5),
            net_break: rate(5),
            net_repeat: rate(3),
            source_power: rate(1),
            receiver_power: rate(2),
            orderly_stop: rate(2),
            set_back: rate(1),
            cutover: rate(3),
            abort: rate(2),
            stall: rate(5),
            ..FaultRates::NONE
        }
    }
}

/// What of the spill is chosen by the operator, and by where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpillConfig {
    pub durability: Durability,
    pub strict: bool,
    /// On the source's device: one flush serves both.
    pub joint: bool,
}

impl SpillConfig {
    /// Records are written as they come.
    pub fn is_eager(&self) -> bool {
        self.durability != Durability::Process
    }
}

/// How fast the parts are, beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As the seed wants it.
    Any,
    /// Guests pause long enough for extents to go cold.
    IdleGuests,
    /// The same, with a state disk that lets everybody else be first.
    SlowState,
    /// Guests pause, and the way to the target is slower than the disks here.
    SlowTarget,
    /// Who appends is slow, so that the stream overtakes it between two stores.
    SlowAppender,
}

/// One run, but for its seed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub rules: Rules,
    /// Requests of each guest.
    pub requests: usize,
    /// Steps with faults; then all is repaired and everything must come to rest.
    pub faulty_steps: u64,
    pub rates: FaultRates,
    /// Source writes that fail, in percent.
    pub fail_write: usize,
    /// Flushes of a source, and syncs of the spill, that fail, in percent.
    pub fail_flush: usize,
    pub fail_spill_sync: usize,
    pub pace: Pace,
    pub spill: Option<SpillConfig>,
    /// Rings lie on a disk, and come through a power loss.
    pub ring_on_disk: bool,
    /// The kernel may end a killed proxy's last write later.
    pub late_io: bool,
    /// The receiver is put back only while the source's power is off: then nothing but the
    /// activity map's base finds it out.
    pub set_back_with_power: bool,
    /// Exactly one kill, at this step.
    pub kill_at: Option<(u64, Process)>,
    /// A cutover is asked for at this step, with this longest pause.
    pub cutover_at: Option<(u64, u64)>,
}

impl Config {
    pub fn calm(requests: usize) -> Config {
        Config {
            rules: Rules::ALL,
            requests,
            faulty_steps: 0,
            rates: FaultRates::NONE,
            fail_write: 0,
            fail_flush: 0,
            fail_spill_sync: 0,
            pace: Pace::Any,
            spill: None,
            ring_on_disk: false,
            late_io: false,
            set_back_with_power: false,
            kill_at: None,
            cutover_at: None,
        }
    }

    /// No faults, but daemons and guests of very different speed: rings overflow and heal.
    pub fn uneven(requests: usize) -> Config {
        Config { faulty_steps: 400, ..Config::calm(requests) }
    }

    /// The source's power fails, again and again, under guests that are often idle.
    pub fn power(rules: Rules, seed: u64) -> Config {
        let mut rng = Rng::new(seed ^ 0x5707_4D5E_ED00_0002);
        Config {
            rules,
            requests: 3 + rng.below(8),
            faulty_steps: 300 + rng.below(700) as u64,
            rates: FaultRates::POWER,
            fail_write: [0, 0, 10][rng.below(3)],
            pace: Pace::IdleGuests,
            ..Config::calm(0)
        }
    }

    /// The same with a slow state disk, and a receiver that is put back while the power is
    /// off.
    pub fn power_set_back(rules: Rules, seed: u64) -> Config {
        let rates = FaultRates { source_power: 30, set_back: 30, stall: 0, ..FaultRates::POWER };
        let pace = Pace::SlowState;
        Config { rates, pace, set_back_with_power: true, ..Config::power(rules, seed) }
    }

    /// The same with proxies that die while the state disk has something to write.
    pub fn power_kills(rules: Rules, seed: u64) -> Config {
        let rates = FaultRates { source_power: 8, kill_proxy: 8, stall: 0, ..FaultRates::POWER };
        Config { rates, pace: Pace::SlowState, ..Config::power(rules, seed) }
    }

    /// Kills of the proxy between any two stores, rings that overflow, writes that fail.
    pub fn kills(rules: Rules) -> Config {
        let uneven = Config::uneven(10);
        let rates = FaultRates { kill_proxy: 60, ..uneven.rates };
        Config { rules, rates, fail_write: 30, ..uneven }
    }

    /// The same with appenders that are slower than the stream and its acknowledgements.
    pub fn slow_kills(rules: Rules) -> Config {
        let kills = Config::kills(rules);
        let rates = FaultRates { kill_proxy: 20, ..kills.rates };
        Config { rates, pace: Pace::SlowAppender, faulty_steps: 1500, ..kills }
    }

    /// With a spill, of any durability, and all that can befall it.
    pub fn spill(rules: Rules, seed: u64) -> Config {
        let mut rng = Rng::new(seed ^ 0x5707_4D5E_ED00_0003);
        let classes = [Durability::Process, Durability::Flush, Durability::Write];
        let spill = SpillConfig {
            durability: classes[rng.below(3)],
            strict: rng.chance(30),
            joint: rng.chance(50),
        };
        let mut rate = |rare: usize| [0, rare, 4 * rare][rng.below(3)];
        let rates = FaultRates {
            kill_proxy: rate(6),
            kill_shipper: rate(3),
            net_break: rate(3),
            source_power: rate(4),
            set_back: rate(2),
            stall: rate(5),
            orderly_stop: rate(2),
            ring_loss: rate(4),
            damage_spill: rate(4),
            mark: rate(8),
            ..FaultRates::NONE
        };
        let pace = [Pace::Any, Pace::IdleGuests, Pace::SlowAppender][rng.below(3)];
        let fail_write = [0, 0, 10][rng.below(3)];
        let fail_spill_sync = [0, 0, 25][rng.below(3)];
        let faulty_steps = 200 + rng.below(800) as u64;
        let requests = 4 + rng.below(14);
        let spill = Some(spill);
        Config {
            rules,
            rates,
            pace,
            fail_write,
            fail_spill_sync,
            faulty_steps,
            spill,
            ..Config::calm(requests)
        }
    }

    /// With a durable spill and a target that lags: extents go cold by the spill alone, and
    /// after a loss of the ring its records are all there is.
    pub fn history(rules: Rules, seed: u64) -> Config {
        let mut rng = Rng::new(seed ^ 0x5707_4D5E_ED00_0005);
        let spill = SpillConfig {
            durability: [Durability::Flush, Durability::Write][rng.below(2)],
            strict: rng.chance(30),
            joint: rng.chance(60),
        };
        let mut rate = |rare: usize| [0, rare, 4 * rare][rng.below(3)];
        let rates = FaultRates {
            source_power: rate(3),
            ring_loss: rate(3),
            damage_spill: rate(4),
            kill_proxy: rate(2),
            kill_shipper: rate(2),
            orderly_stop: rate(1),
            set_back: rate(1),
            ..FaultRates::NONE
        };
        Config {
            rules,
            rates,
            pace: Pace::SlowTarget,
            fail_write: [0, 10][rng.below(2)],
            faulty_steps: 600 + rng.below(1800) as u64,
            spill: Some(spill),
            ..Config::calm(6 + rng.below(14))
        }
    }

    /// Machines and people that do what they should not: sources changed while nobody looks,
    /// rings on disks, writes that end after their owner, flushes that fail, marks.
    pub fn odd(rules: Rules, seed: u64) -> Config {
        let mut rng = Rng::new(seed ^ 0x5707_4D5E_ED00_0004);
        let mut on = |rate: usize| [0, rate][rng.below(2)];
        let rates = FaultRates {
            kill_proxy: on(10),
            source_power: on(8),
            orderly_stop: on(6),
            ring_loss: on(6),
            change_source: on(20),
            mark: on(20),
            stall: on(8),
            ..FaultRates::NONE
        };
        let fail_flush = on(15);
        let (ring_on_disk, late_io) = (rng.chance(50), rng.chance(50));
        let mut config = Config {
            rules,
            rates,
            fail_flush,
            ring_on_disk,
            late_io,
            pace: [Pace::Any, Pace::IdleGuests][rng.below(2)],
            faulty_steps: 200 + rng.below(600) as u64,
            ..Config::calm(4 + rng.below(14))
        };
        if fail_flush > 0 {
            // Who kills a proxy whose flush has failed, or stops it, learns of no failure
            // any more: not survivable, and said in docs/SEMANTICS.md.
            config.rates = FaultRates { kill_proxy: 0, orderly_stop: 0, ring_loss: 0, ..rates };
        }
        config
    }

    /// Many faults, of kinds and rates that the seed chooses.
    pub fn stormy(rules: Rules, seed: u64) -> Config {
        let mut rng = Rng::new(seed ^ 0x5707_4D5E_ED00_0001);
        Config {
            rules,
            requests: 4 + rng.below(14),
            faulty_steps: 150 + rng.below(500) as u64,
            rates: FaultRates::from_seed(&mut rng),
            fail_write: [0, 0, 3, 15][rng.below(4)],
            ..Config::calm(0)
        }
    }
}

impl World {
    /// Faults of this step.
    pub fn strike(&mut self) {
        if let Some((at, process)) = self.config.kill_at
            && at == self.now
        {
            self.kill(process);
        }
        if let Some((at, max_pause)) = self.config.cutover_at
            && self.now >= at
            && self.can_start_cutover()
        {
            self.config.cutover_at = None;
            self.start_cutover(max_pause);
        }
        if self.faulty {
            self.strike_at_random();
        }
    }

    fn strike_at_random(&mut self) {
        let rates = self.config.rates;
        let mut dice = self.rng.below(1000);
        let mut hit = |rate: usize| {
            let hit = dice < rate;
            dice = if hit { usize::MAX } else { dice.saturating_sub(rate) };
            hit
        };
        if hit(rates.kill_proxy) {
            self.kill(Process::Proxy);
        } else if hit(rates.kill_shipper) {
            self.kill(Process::Shipper);
        } else if hit(rates.kill_receiver) {
            self.kill(Process::Receiver);
        } else if hit(rates.net_break) {
            self.break_net();
        } else if hit(rates.net_repeat) {
            self.repeat_message();
        } else if hit(rates.source_power) {
            self.power_loss_source();
        } else if hit(rates.receiver_power) {
            if !self.receiver.store.promoted() {
                self.power_loss_receiver();
            }
        } else if hit(rates.orderly_stop) {
            self.stopping |= self.proxy.life == Life::Serving;
        } else if hit(rates.set_back) {
            self.set_back_or_remember();
        } else if hit(rates.cutover) {
            if self.can_start_cutover() {
                let max_pause = [5, 40, 150, 600][self.rng.below(4)];
                self.start_cutover(max_pause);
            }
        } else if hit(rates.abort) {
            self.cutover_event(towline_control::Event::OperatorAbort);
        } else if hit(rates.stall) {
            self.stall();
        } else if hit(rates.ring_loss) {
            self.lose_ring();
        } else if hit(rates.damage_spill) {
            if self.spill.damage(&mut self.rng) {
                self.note(|| "the spill is DAMAGED".into());
                self.seen.spill_damaged = true;
            }
        } else if hit(rates.change_source) {
            self.change_source();
        } else if hit(rates.mark) {
            self.mark_point();
        }
        self.step_orderly_stop();
    }

    fn can_start_cutover(&self) -> bool {
        let running = self.shipper.stage == crate::shipper::Stage::Running;
        running && self.shipper.cutover.is_none() && self.shipper.settle.is_none()
    }

    /// SIGTERM: no new requests, those in flight end, the map is saved, then the ring removed.
    pub fn step_orderly_stop(&mut self) {
        if !self.stopping {
            return;
        }
        if self.proxy.life != Life::Serving {
            self.stopping = false;
            return;
        }
        let busy = self.proxy.ops.iter().any(Option::is_some);
        let sealing = matches!(self.proxy.link_op, Some(LinkOp::Seal { .. }));
        let held = self.proxy.held.is_some() || self.proxy.lock.is_some() || sealing;
        if busy || held || self.state.seal.is_some() {
            return;
        }
        self.save_map();
        // A kill between the two steps leaves both, and the ring counts.
        if self.rng.chance(70) {
            self.ring = None;
        }
        self.kill(Process::Proxy);
        self.stopping = false;
    }

    /// The connection ends. A part of what was sent still arrives.
    fn break_net(&mut self) {
        let id = self.shipper.conn;
        let Some(conn) = self.conns.iter_mut().find(|c| c.id == id) else { return };
        let keep = self.rng.below(conn.to_receiver.len() + 1);
        conn.to_receiver.truncate(keep);
        if self.rng.chance(50) {
            conn.to_shipper.clear();
        }
        self.note(|| "NET BREAK".into());
        self.drop_net();
    }

    /// A peer or a middle box sends a message again.
    fn repeat_message(&mut self) {
        let id = self.shipper.conn;
        let Some(conn) = self.conns.iter_mut().find(|c| c.id == id) else { return };
        let Some(message) = conn.to_receiver.front().cloned() else { return };
        if matches!(message, crate::wire::ToReceiver::Batch(_)) {
            let at = 1 + self.rng.below(conn.to_receiver.len());
            conn.to_receiver.insert(at, message);
            self.note(|| "NET REPEATS a batch".into());
        }
    }

    /// The source's machine loses power: ring, map and unflushed writes are gone.
    fn power_loss_source(&mut self) {
        self.note(|| "POWER LOSS source".into());
        self.hear_alarm();
        self.kill(Process::Proxy);
        self.kill(Process::Shipper);
        self.zombies.clear();
        self.source.lose_power(&mut self.rng);
        self.map_file.lose_power(&mut self.rng);
        self.spill.lose_power(&mut self.rng);
        self.boot += 1;
        if let Some(cell) = self.ledger.lost_after_power_loss(&self.source.now)
            && !self.receiver.store.promoted()
        {
            self.violate(format!("(a) a flushed write to cell {cell} is lost at a power loss"));
        }
        if !self.config.ring_on_disk {
            self.ring = None;
        }
        if self.config.set_back_with_power {
            self.set_back();
        }
        self.guests_start_from_source();
    }

    /// The machine that ran the guests is gone, or its disk was changed.
    fn guests_start_from_source(&mut self) {
        let source = self.source.now;
        self.history.restart_from(self.state.inc, &source);
        if !self.receiver.store.promoted() {
            self.ledger.restart_from(&source);
            for guest in &mut self.guests {
                guest.current = None;
                guest.sent = false;
            }
        }
    }

    /// The operator knows when a write went past a slow state disk, until that is made good.
    fn hear_alarm(&mut self) {
        let found = self.ring.as_ref().is_some_and(|ring| ring.map_invalid);
        let served = self.proxy.life == Life::Serving;
        self.resync_asked |= self.proxy.activity.invalid || (found && !served);
    }

    /// Shared memory is gone, the machine goes on.
    fn lose_ring(&mut self) {
        if self.ring.is_none() || self.state.seal.is_some() || self.receiver.store.promoted() {
            return;
        }
        self.note(|| "the RING IS LOST".into());
        self.hear_alarm();
        self.kill(Process::Proxy);
        // Nobody's last write is still under way when the next one starts without a ring.
        while self.land_zombie() {}
        self.ring = None;
        let source = self.source.now;
        self.history.restart_from(self.state.inc, &source);
    }

    /// Somebody mounts the disk while no proxy runs.
    fn change_source(&mut self) {
        let busy = self.state.seal.is_some() || self.receiver.store.promoted();
        if self.proxy.life != Life::Dead || self.state.inc == 0 || busy {
            return;
        }
        self.note(|| "the SOURCE IS CHANGED".into());
        while self.land_zombie() {}
        self.next_id += 1;
        let value = FOREIGN | self.next_id as u32;
        let cell = self.rng.below(crate::disk::CELLS);
        self.source.write(cell, value);
        self.source.settle();
        self.changed = true;
        self.guests_start_from_source();
    }

    fn set_back_or_remember(&mut self) {
        if self.earlier.is_some() && !self.config.set_back_with_power {
            self.set_back();
        } else {
            self.earlier = Some(self.receiver.store.clone());
        }
    }

    /// Setting back a receiver that takes over is not survivable by any protocol.
    fn set_back(&mut self) {
        let Some(earlier) = self.earlier.take() else { return };
        if self.state.seal.is_some() || self.receiver.store.promoted() {
            return;
        }
        self.set_back = true;
        self.seen.point = None;
        self.set_back_receiver(earlier);
    }

    /// Everything is repaired.
    pub fn repair(&mut self) {
        self.faulty = false;
        self.stalled = None;
        self.stopping = false;
    }
}
