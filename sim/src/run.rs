//! One run from a seed, and the searches over many.

use crate::faults::Config;
use crate::guest::Guest;
use crate::proxy::Life;
use crate::ring::Pos;
use crate::shipper::Stage;
use crate::world::{Process, World};
use std::fmt;

/// Steps in which everything must come to rest once nothing fails any more. Runs that do
/// take a few hundred.
const REST_STEPS_MAX: u64 = 6000;

/// A broken promise, with everything needed to see it again.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub config: Config,
    pub what: String,
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "{:?}", self.config)
    }
}

/// What a run that held went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    pub steps: u64,
    pub points: u64,
    pub promoted: bool,
    /// Verdicts of comparisons: equal, differing.
    pub verdicts: [u64; 2],
    /// Blocks that the loss of a ring did not make suspect.
    pub spared: u64,
    /// Records shipped from a lost ring's history, and from the spill.
    pub shipped: [u64; 2],
    /// Answers behind which the journal's durability stood, and late ones.
    pub durable_answers: [u64; 2],
    pub marks: u64,
    /// Blocks of which only parts were sent.
    pub parts: u64,
}

/// Runs a seed; a failing one is run again for its trace.
pub fn run(config: Config, seed: u64) -> Result<Passed, Box<Failure>> {
    let world = play(config, seed, false);
    let Some(what) = world.violation else {
        return Ok(Passed {
            steps: world.now,
            points: world.seen.points,
            promoted: world.receiver.store.promoted(),
            verdicts: world.seen.verdicts,
            spared: world.seen.spared,
            shipped: world.seen.shipped,
            durable_answers: world.seen.durable_answers,
            marks: world.seen.marks,
            parts: world.seen.parts,
        });
    };
    let trace = play(config, seed, true).trace.unwrap_or_default();
    Err(Box::new(Failure { seed, config, what, trace }))
}

fn play(config: Config, seed: u64, traced: bool) -> World {
    let mut world = World::new(config, seed, traced);
    while world.now < config.faulty_steps && world.violation.is_none() {
        world.strike();
        world.step();
        world.check();
    }
    world.repair();
    let end = world.now + REST_STEPS_MAX;
    while world.violation.is_none() && !(world.is_quiet() && world.config.cutover_at.is_none()) {
        if world.now >= end {
            let stuck = world.stuck();
            world.violate(format!("(c) no rest after {REST_STEPS_MAX} steps: {stuck}"));
            break;
        }
        world.strike();
        world.step();
        world.check();
    }
    if world.violation.is_none() {
        world.check_rest();
    }
    world
}

impl World {
    /// Nothing is left to do: guests served, stream drained, cutover ended.
    fn is_quiet(&self) -> bool {
        let guests = self.guests.iter().all(Guest::is_done);
        if !guests || self.shipper.cutover.is_some() || self.shipper.settle.is_some() {
            return false;
        }
        if self.receiver.store.promoted() {
            return self.state.promoted;
        }
        let Some(ring) = &self.ring else { return false };
        let end = self.receiver.store.applied.end.pos;
        self.proxy.life == Life::Serving
            && self.shipper.stage == Stage::Running
            && ring.map_is_empty()
            && ring.whole
            && self.state.seal.is_none()
            && ring.acked == ring.head
            && end == (Pos { inc: ring.inc, seq: ring.head })
            && self.receiver.store.staging.is_empty()
    }

    fn stuck(&self) -> String {
        let ring = self.ring.as_ref().map(|r| {
            format!(
                "head {} acked {} whole {} dirty {:?} claimed {:?}",
                r.head, r.acked, r.whole, r.dirty, r.claimed
            )
        });
        format!(
            "proxy {:?}, ring {ring:?}, shipper {:?}, cutover {:?}, seal {:?}, receiver {:?}",
            self.proxy.life,
            self.shipper.stage,
            self.shipper.cutover.as_ref().map(|m| m.state().clone()),
            self.state.seal,
            self.receiver.store.applied,
        )
    }
}

/// One kill of each process at each step of a run without other faults.
pub fn sweep(config: Config, seed: u64) -> Result<u64, Box<Failure>> {
    let steps = run(config, seed)?.steps;
    let mut runs = 1;
    for at in 0..steps {
        for process in Process::ALL {
            run(Config { kill_at: Some((at, process)), ..config }, seed)?;
            runs += 1;
        }
    }
    Ok(runs)
}
