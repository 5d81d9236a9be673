//! One window's figures: what the client counted, what the server used, who disturbed.

use super::cpu::{CpuTime, Family};
use super::noise;
use super::placement::Seats;
use super::plan::Job;
use super::report::RoundReport;
use super::servers::Running;
use crate::load::{Outcome, Tally};

/// What is measured now.
pub(super) struct Target<'a> {
    pub job: &'a Job,
    pub seats: &'a Seats,
    pub running: &'a Running,
    pub round: usize,
}

impl Target<'_> {
    pub(super) fn report(
        &self,
        outcome: &Outcome,
        before: &Books,
        after: &Books,
    ) -> (RoundReport, Tally) {
        let mut report = RoundReport::of(self.job, &outcome.tally, outcome.seconds, self.round);
        let server = after.server.since(before.server);
        report.charge(self.job, server.total_ns, after.side.since(before.side).total_ns);
        let noise = after.machine.since(&before.machine, after.ours.since(before.ours));
        report.others = noise.others;
        report.stolen = noise.stolen;
        report.clean = noise.is_clean();
        (report, outcome.tally.clone())
    }
}

/// Processor time of all parts at one moment.
pub(super) struct Books {
    server: CpuTime,
    side: CpuTime,
    ours: CpuTime,
    machine: noise::Machine,
}

impl Books {
    pub(super) fn now(running: &Running) -> Books {
        // All that was started here is a child of this process, except daemons.
        let mut ours = running.all_pids();
        ours.push(std::process::id());
        let family = Family::now();
        Books {
            server: family.time_of(&running.server_pids),
            side: family.time_of(&running.side_pids),
            ours: family.time_of(&ours),
            machine: noise::Machine::now(),
        }
    }
}
